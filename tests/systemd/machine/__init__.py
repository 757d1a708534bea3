"""A machine with systemd that runs units and the rendered stack beside each other."""

import json
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests import evidence
from tests.evidence import step
from tests.stack.stack import PATIENCE, PRODUCTION, Stack, wait_for

from .look import ROLES

HERE = Path(__file__).parent
FAULTS = HERE.parent / "faults"
SIDES = ("systemd", "stack")
State = dict[str, dict[str, dict[str, Any]]]


def docker(*arguments: str, timeout: float = 600, check: bool = True) -> str:
    """Run docker on this machine and return what it printed."""
    with step(f"docker {' '.join(arguments)}") as notes:
        done = subprocess.run(
            ["docker", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        notes += [f"exit {done.returncode}"] if done.returncode else []
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


class Vm:
    """A privileged container with systemd as its first process."""

    def __init__(self, stack: Stack) -> None:
        """Choose a name for a machine for `stack`; nothing is built or started yet."""
        self.name = f"dcctest-systemd-{secrets.token_hex(4)}"
        self.stack = stack

    def build(self, *options: str) -> None:
        """Build the machine's image on the base of the project's."""
        dockerfile = (self.stack.folder / "Dockerfile").read_text()
        python = re.search(r"^FROM (python:\S+)", dockerfile, re.MULTILINE)[1]
        docker(
            *("build", "--quiet", "--network=host", f"--tag={self.name}"),
            *(f"--build-arg=PYTHON={python}", *options, str(HERE)),
            timeout=600,
        )

    def create(self, *options: str) -> None:
        """Make the machine, switched off; `options` are those of `docker create`."""
        docker(
            *("create", f"--name={self.name}", "--privileged", "--cgroupns=private"),
            "--cpu-shares=8192",  # as much as the dozen containers that it holds
            *("--tmpfs=/run", "--tmpfs=/run/lock", "--stop-timeout=120"),
            *(f"--volume={self.name}:/var/lib/docker", *options, self.name),
        )

    def load(self, images: Iterable[str]) -> None:
        """Copy images of this machine's engine into the one inside."""
        load = ["docker", "exec", "--interactive", self.name, *self.loading()]
        save = ["docker", "save", *sorted(set(images))]
        with subprocess.Popen(save, stdout=subprocess.PIPE) as saving:
            subprocess.run(load, stdin=saving.stdout, check=True, capture_output=True, timeout=300)
        assert saving.returncode == 0

    def loading(self) -> list[str]:
        """Return the words that load images from stdin."""
        return ["docker", "load", "--quiet"]

    def remove(self) -> None:
        """Remove the machine, its disk and every image that was built for it."""
        evidence.keep_before_removal()
        docker("rm", "--force", "--volumes", self.name, check=False)
        docker("volume", "rm", "--force", self.name, check=False)
        docker("image", "rm", "--force", self.name, check=False)
        self.stack.remove()

    def run(self, *command: str, timeout: float = 600, check: bool = True) -> str:
        """Run a command as root and return what it printed."""
        evidence.involve(self)
        return docker("exec", self.name, *command, timeout=timeout, check=check)

    def evidence(self) -> dict[str, str]:
        """Return how the containers inside are, the end of each one's log, and the journal's."""
        lines = f"--tail={evidence.LINES}"
        names = ["docker", "ps", "--all", "--format={{.Names}}"]
        look = {"ps.txt": ["docker", "ps", "--all"]}
        for name in docker("exec", self.name, *names, check=False).split():
            look[f"{name}.log"] = ["sh", "-c", f"docker logs --timestamps {lines} {name} 2>&1"]
        look["journal.txt"] = ["journalctl", f"--lines={evidence.LINES}", "--no-pager"]
        return {
            name: docker("exec", self.name, *command, timeout=60, check=False)
            for name, command in look.items()
        }

    def kill_engine(self) -> None:
        """SIGKILL to the engine inside, which systemd starts again; return when it answers."""
        show = ("systemctl", "show", "--property=MainPID", "--value", "docker")
        before = self.run(*show).strip()
        self.run("kill", "-s", "KILL", before)
        wait_for("another engine", lambda: self.run(*show).strip() not in ("0", before))
        version = ("docker", "version", "--format={{.Server.Version}}")
        wait_for("it answers", lambda: self.run(*version, check=False).strip())

    # Power -----------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch on, and wait until systemd has started all that is enabled."""
        docker("start", self.name)
        wait_for(
            "the machine is up",
            lambda: (
                self.run("systemctl", "is-system-running", check=False).strip()
                in ("running", "degraded")
            ),
        )

    def reboot(self) -> None:
        """Shut down as `systemctl reboot` does, then boot."""
        self.run("systemctl", "reboot", check=False)
        docker("wait", self.name, timeout=600)
        self.boot()

    def cut_power(self) -> None:
        """Switch off without a word to any process, then boot."""
        docker("kill", self.name)
        docker("wait", self.name)
        self.boot()


class Machine(Vm):
    """A machine that runs units and the stack."""

    def __init__(self, folder: Path) -> None:
        """Render a project into `folder`; nothing is built or started yet."""
        # One queue is enough here, and what the machine needs most of is CPU.
        super().__init__(Stack(folder, PRODUCTION, queues="none", example="false"))
        shutil.copytree(FAULTS, self.stack.folder / "faults")
        self.stack.set(PYTHONPATH="/app/faults", HTTP_PORT="127.0.0.1:8080")
        # Flower gets of .env what compose.yaml names.
        self.stack.edit(
            "compose.yaml", "      SENTRY_DSN:\n", "      SENTRY_DSN:\n      PYTHONPATH:\n"
        )
        # What .env.example says of "$" and "#".
        self.stack.set(QUOTED="'a$HOME # b'", BARE="a$HOME # b")

    def build(self) -> None:
        """Build the project's images, and the machine's on top of their base."""
        self.stack.compose("build")
        super().build(f"--build-arg=APP={self.stack.slug}")

    def install(self) -> None:
        """Boot with the project's folder and images on the disk, and start the stack once."""
        self.create()
        docker("cp", f"{self.stack.folder}/.", f"{self.name}:/srv/stack")
        self.boot()
        self.load(self.stack.compose("config", "--images").split())
        self.compose("up", "--detach")

    def run(self, *command: str, timeout: float = 600, check: bool = True) -> str:
        """Run a command as root in the stack's folder and return what it printed."""
        evidence.involve(self)
        return docker(
            "exec", "--workdir=/srv/stack", self.name, *command, timeout=timeout, check=check
        )

    def compose(self, *arguments: str, **options: Any) -> str:
        """Run `docker compose` inside, as a person types it."""
        return self.run("docker", "compose", "--progress", "quiet", *arguments, **options)

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine inside knows of a service's container."""
        return json.loads(self.run("docker", "inspect", f"{self.stack.slug}-{service}-1"))[0]

    # What is there ---------------------------------------------------------------------------------

    def look(self, what: str = "state", *arguments: object, timeout: float = 60) -> dict:
        """Ask look.py, which runs inside."""
        command = ["python3", "/usr/local/lib/look.py", what, *map(str, arguments)]
        return json.loads(self.run(*command, timeout=timeout))

    def start(self) -> State:
        """Start whatever is down on both sides, wait until all of it works, and return that."""
        if state := self.all_work():
            return state
        self.run("systemctl", "enable", "--now", "--quiet", *ROLES)
        # Without --wait, which fails for a container that is between two restarts.
        self.compose("up", "--detach", "--no-deps", *ROLES.values())
        return wait_for("all work", self.all_work)

    def all_work(self) -> State | None:
        """Return the state when all eight work; else None."""
        state = self.look()
        good = all(role["works"] for side in state.values() for role in side.values())
        return state if good else None

    def outcomes(
        self,
        before: State,
        seconds: float = PATIENCE,
        roles: Iterable[str] = tuple(ROLES),
        sides: Iterable[str] = SIDES,
    ) -> dict[str, str]:
        """
        Wait at most `seconds` until `roles` are back on `sides`; return what became of both sides.

        "back" is another process, which works; "untouched" is the same one; "down" is none. A side
        of which not all roles fare alike says so.
        """
        deadline = time.monotonic() + seconds
        while True:
            state = self.look()
            found = {
                side: {role: outcome(before[side][role], state[side][role]) for role in roles}
                for side in SIDES
            }
            all_back = all(set(found[side].values()) == {"back"} for side in sides)
            if all_back or time.monotonic() > deadline:
                break
            time.sleep(1)
        return {
            side: what.pop() if len(what := set(fares.values())) == 1 else str(fares)
            for side, fares in found.items()
        }

    def kill(self, signal: str, *pids: int) -> None:
        """Send a signal to processes, from outside of their containers."""
        assert all(pids), pids
        self.run("bash", "-c", f"kill -s {signal} {' '.join(map(str, pids))}")

    def python(self, side: str, code: str) -> str:
        """Run `code` in the Django shell of one side and return what it prints."""
        shell = ["manage.py", "shell", "--no-imports", "--command", code]
        if side == "stack":
            return self.compose("exec", "--no-TTY", "web-a", "python", *shell).strip()
        unit = ["User=app", "WorkingDirectory=/app"]
        unit += ["EnvironmentFile=/srv/stack/.env", "EnvironmentFile=/etc/project.env"]
        run = ["systemd-run", "--quiet", "--pipe", "--wait", *(f"-p{line}" for line in unit)]
        return self.run(*run, "/venv/bin/python", *shell).strip()


def both(systemd: Callable[[], Any], stack: Callable[[], Any]) -> dict[str, Any]:
    """Do the same on both sides at the same time; return what came of it, by side."""
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(systemd), pool.submit(stack)]
        return {side: done.result() for side, done in zip(SIDES, running, strict=True)}


def outcome(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return what became of one main process."""
    if not now["process"]:
        return "down"
    if now["process"] == before["process"]:
        return "untouched"
    return "back" if now["works"] else "there, but does not work"
