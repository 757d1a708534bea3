"""A Docker engine that answers, with Compose and buildx beside it."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from . import StepFailed, output, report, run, step, tail
from .packages import can_install, install, install_from, system

# The first Compose whose health checks know a start_interval and that is still maintained.
COMPOSE = (2, 26)
# Debian 12 has Compose 1 and no buildx; the packages of its successor run on it as they are.
NEWER_SUITE = {"12": "trixie"}
BY_HAND = (
    f"install Docker Engine with Compose {COMPOSE[0]}.{COMPOSE[1]} or newer and buildx "
    "(https://docs.docker.com/engine/install/)"
)
LOG = Path("/var/log/dockerd.log")


def engine() -> str | None:
    """Version of the engine that answers; None when none does."""
    return output("docker", "version", "--format", "{{.Server.Version}}") or None


def compose() -> tuple[int, ...]:
    """Major and minor version of the Compose plugin; (0, 0) without one."""
    found = re.search(r"(\d+)\.(\d+)", output("docker", "compose", "version", "--short") or "0.0")
    return tuple(map(int, found.groups()))


def daemon() -> str | None:
    """Path of the engine's program, also where PATH has no folders for root."""
    return shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def missing() -> list[str]:
    """Which of the engine, Compose and buildx are not installed."""
    present = {
        "engine": engine() or daemon(),
        "Compose": compose() >= COMPOSE,
        "buildx": output("docker", "buildx", "version"),
    }
    return [part for part, found in present.items() if not found]


def install_parts(parts: list[str]) -> None:
    """Install what is missing from the distribution's own packages.

    Raises:
        StepFailed: where that cannot be done, or the distribution is too old.
    """
    if not can_install():
        raise StepFailed(
            f"Missing: {', '.join(parts)}. Either {BY_HAND}, start it and let this user use it, "
            "or run this as root on Debian or Ubuntu."
        )
    debian = system()["ID"] == "debian"
    packages = {
        "engine": ["docker.io", "containerd"],
        "Compose": ["docker-compose" if debian else "docker-compose-v2"],
        "buildx": ["docker-buildx"],
    }
    names = [name for part in parts for name in packages[part]] + ["docker-cli"] * debian
    newer = NEWER_SUITE.get(system().get("VERSION_ID", "")) if debian else None
    if newer:
        install_from(newer, *names)
    else:
        install(*names)
    if left := missing():
        raise StepFailed(
            f"{system()['PRETTY_NAME']} has no recent enough {', '.join(left)}: {BY_HAND}."
        )


def start() -> None:
    """Start the engine and wait up to 60 seconds for its answer.

    Raises:
        StepFailed: when it may not be started from here, ends, or does not answer.
    """
    if host := os.environ.get("DOCKER_HOST"):
        raise StepFailed(f"No engine answers at DOCKER_HOST={host}: start that one, or unset it.")
    if os.name != "posix" or os.geteuid() or not daemon():
        raise StepFailed(
            "No engine answers: start Docker (Linux: sudo systemctl start docker), and let this "
            'user use it (sudo usermod -aG docker "$USER", then log in again).'
        )
    process = None
    LOG.touch()
    before = LOG.stat().st_size
    with step("starting the engine"):
        if Path("/run/systemd/system").exists():
            run("systemctl", "enable", "--now", "docker", way_out="read journalctl -u docker")
        else:
            with LOG.open("ab") as log:
                process = subprocess.Popen(
                    [daemon()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    # It outlives this command, its terminal and their signals.
                    start_new_session=True,
                )
        end = time.monotonic() + 60
        while engine() is None:
            if time.monotonic() > end or (process and process.poll() is not None):
                printed = LOG.read_bytes()[before:].decode(errors="replace")
                where = LOG if process else "journalctl -u docker"
                raise StepFailed(f"The engine does not start: read {where}.\n{tail(printed)}")
            time.sleep(0.2)


def ensure_engine() -> None:
    """Install what is missing, and start the engine when none answers."""
    if parts := missing():
        report(f"Docker: {', '.join(parts)} missing")
        install_parts(parts)
    if engine() is None:
        report("Docker: no engine answers")
        start()
    major, minor = compose()
    report(f"Docker: engine {engine()}, Compose {major}.{minor}, buildx")
