"""Runs inside the machine: looks at the main processes of the units and of the stack, or kills them."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The unit, and the service of the stack that is its equal.
ROLES = {"web": "web-a", "worker": "worker-default", "beat": "beat", "flower": "flower"}
PAGES = {"web": ("8000", "/healthz"), "flower": ("5555", "/flower/healthcheck")}
TICKS = os.sysconf("SC_CLK_TCK")


def ask(*command: str) -> str:
    """Return what a command prints, whatever its exit code."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout


def units() -> dict[str, tuple[int, int]]:
    """Return the main process (0: none) and the number of restarts of each unit."""
    printed = ask("systemctl", "show", "--property=Id,MainPID,NRestarts", *ROLES)
    found = {}
    for block in printed.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines())
        found[values["Id"].removesuffix(".service")] = (
            int(values["MainPID"]),
            int(values["NRestarts"]),
        )
    return found


def engine(path: str) -> Any:
    """Return what the engine answers; to start docker each time costs far more. None: nothing."""
    connection = http.client.HTTPConnection("localhost")
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect("/run/docker.sock")
        connection.request("GET", path)
        answer = connection.getresponse()
        return json.load(answer) if answer.status == 200 else None
    return None


def containers() -> dict[str, dict]:
    """Return what the engine knows of the container of each role that has one."""
    label = "com.docker.compose.service"
    ids = {
        found["Labels"][label]: found["Id"]
        for found in engine("/containers/json?all=1") or []
        if label in found["Labels"]
    }
    known = {
        role: engine(f"/containers/{ids.get(service)}/json") for role, service in ROLES.items()
    }
    return {role: found for role, found in known.items() if found}


def children(pid: int) -> list[int]:
    """Return the processes that a process started; none when it is gone."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def main_of(container: dict) -> int:
    """Return the main process of a container: not its init, which only passes signals on."""
    pid = container["State"]["Pid"]
    try:
        if pid and Path(f"/proc/{pid}/comm").read_text().strip() in ("docker-init", "tini"):
            # What a killed main process leaves is a child of the init, too, for a moment; but the init
            # makes only its own child the leader of a process group.
            return next((child for child in children(pid) if os.getpgid(child) == child), 0)
    except OSError:
        return 0
    return pid


def mains() -> dict[str, dict[str, tuple[int, int]]]:
    """Return main process and number of restarts by side and role."""
    stack = {
        role: (main_of(container), container["RestartCount"])
        for role, container in containers().items()
    }
    return {"systemd": units(), "stack": {role: stack.get(role, (0, 0)) for role in ROLES}}


def started_after_boot(pid: int) -> float:
    """Return when a process began, in seconds since the machine's boot; OSError when it is gone."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / TICKS


def started(pid: int) -> float:
    """Return when a process began, in seconds since 1970; OSError when it is gone."""
    booted = re.search(r"^btime (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)
    return int(booted[1]) + started_after_boot(pid)


def works(role: str, pid: int) -> bool:
    """Return whether a main process does what it is for: answers, or has a heartbeat of its own."""
    if role not in PAGES:
        try:
            heartbeat = Path(f"/proc/{pid}/root/tmp/heartbeat").stat().st_mtime
            return heartbeat > max(started(pid), time.time() - 60)
        except OSError:
            return False
    port, path = PAGES[role]
    get = (
        f"exec 3<>/dev/tcp/127.0.0.1/{port}; "
        f"printf 'GET {path} HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3; head -1 <&3"
    )
    answer = ask("nsenter", f"--net=/proc/{pid}/ns/net", "timeout", "5", "bash", "-c", get)
    return " 200 " in answer


def state() -> dict[str, dict[str, dict]]:
    """Return by side and role: pid, what tells this process from all others, whether it works."""
    found: dict[str, dict[str, dict]] = {}
    for side, roles in mains().items():
        found[side] = {}
        for role, (pid, restarts) in roles.items():
            try:
                process = f"{pid} {started(pid)}" if pid else ""
            except OSError:  # gone meanwhile
                process = ""
            found[side][role] = {
                "pid": pid,
                "process": process,
                "works": bool(process) and works(role, pid),
                "restarts": restarts,
                "children": children(pid),
            }
    return found


def flap(times: float) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Kill every main process as soon as it is seen, until each role was killed so often.

    Returns each kill, by side and role: when the process began and when it was killed, in seconds
    since the machine's boot.
    """
    kills: dict[str, dict[str, list[dict[str, float]]]] = {
        side: {role: [] for role in ROLES} for side in ("systemd", "stack")
    }
    killed = set()
    while any(len(found) < times for roles in kills.values() for found in roles.values()):
        for side, roles in mains().items():
            for role, (pid, _) in roles.items():
                if pid and (side, role, pid) not in killed and len(kills[side][role]) < times:
                    killed.add((side, role, pid))
                    with contextlib.suppress(OSError):  # it ended by itself meanwhile
                        began = started_after_boot(pid)
                        now = time.clock_gettime(time.CLOCK_BOOTTIME)
                        os.kill(pid, signal.SIGKILL)
                        kills[side][role].append({"began": began, "killed": now})
        time.sleep(0.05)
    return kills


def endings(since: float) -> dict[str, dict[str, list[str]]]:
    """Return how the main processes ended since then: "exit 1", "signal 9"."""
    found: dict[str, dict[str, list[str]]] = {"systemd": {}, "stack": {}}
    for role in ROLES:
        printed = ask("journalctl", "--output=cat", f"--since=@{since}", f"--unit={role}")
        words = re.findall(
            r"Main process exited, code=(\w+), status=(\d+)|(Deactivated successfully)", printed
        )
        found["systemd"][role] = [
            "exit 0" if success else f"{'exit' if code == 'exited' else 'signal'} {status}"
            for code, status, success in words
        ]
    for role, container in containers().items():
        printed = ask(
            *("docker", "events", f"--since={since}", f"--until={time.time()}"),
            *("--filter=event=die", f"--filter=container={container['Id']}"),
            "--format={{.Actor.Attributes.exitCode}}",
        )
        found["stack"][role] = [
            f"signal {int(code) - 128}" if int(code) > 128 else f"exit {code}"
            for code in printed.split()
        ]
    return found


COMMANDS: dict[str, Callable[..., dict]] = {"state": state, "flap": flap, "endings": endings}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](*map(float, sys.argv[2:]))))
