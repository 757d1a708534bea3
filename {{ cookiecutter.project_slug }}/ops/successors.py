"""
Replacement of containers without a gap: a successor takes over before the one before it stops.

A successor is one more container of its service, from the present image and settings. For a moment both
consume the queue, or answer pages.
"""

import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import common
from common import Failed, compose, report, run

# Seconds in which the proxy finds new addresses: "valid" in nginx/start.sh, and a margin.
RESOLVED = 2.5
MEMORY = 200  # MB that have to be available for each container that starts


class Replacement:
    """The replacement of workers and web instances."""

    def __init__(self, services: list[str], outdated: bool, wait: int) -> None:
        """
        Create successors, which do not run yet.

        With `outdated` only where no healthy container is of the present image and newer than .env. Each
        may take `wait` seconds to become healthy. Failed when they cannot be created.
        """
        self.wait = wait
        there = {name: common.containers(name) for name in services}
        kept = {name: current(name)[:1] if outdated else [] for name in services}
        self.old = {name: [c for c in there[name] if c not in kept[name]] for name in services}
        lacking = [name for name in services if not kept[name]]
        if lacking:
            scales = [f"--scale={name}={len(there[name]) + 1}" for name in lacking]
            # Not "up --no-deps": without its dependencies a container counts as changed for the next "up".
            compose("create", "--no-recreate", *scales, *lacking)
        self.new = {
            name: [c for c in common.containers(name) if c not in there[name]] for name in lacking
        }
        self.stopping: dict[str, Future] = {}
        self.pool = ThreadPoolExecutor(max_workers=len(services) or 1)

    def take_over(self, *services: str) -> None:
        """
        Start successors, and begin to stop the containers before them; that goes on in the background.

        Failed when one does not become healthy: those before it stay.
        """
        left = list(services)
        while left:
            # One that is too much for the memory waits until those before the others are gone.
            size = at_once()
            part, left = left[:size], left[size:]
            ill = self.start([name for name in part if name in self.new])
            for name in part:
                if name not in ill and self.old[name]:
                    self.stopping[name] = self.pool.submit(stop, name, self.old[name])
            if ill:
                rest = [c for name in [*ill, *left] for c in self.new.get(name, [])]
                run("docker", "rm", "--force", *rest)
                raise Failed(
                    f"{', '.join(ill)}: its successor does not become healthy; the old one stays."
                )

    def start(self, services: list[str]) -> list[str]:
        """Start their successors; return the services whose successors do not become healthy."""
        if not services:
            return []
        report(f"{', '.join(services)}: starting the successor{'s' * (len(services) > 1)}")
        ids = [c for name in services for c in self.new[name]]
        run("docker", "start", *ids)
        ill = common.unhealthy_after(ids, self.wait)
        if any(name.startswith("web-") for name in services):
            time.sleep(RESOLVED)
        return ill

    def finish(self) -> None:
        """Wait until the containers before have ended what they had begun, and are gone."""
        if busy := [name for name, stopped in self.stopping.items() if not stopped.done()]:
            report(f"{', '.join(busy)}: waiting for what the old one has begun")
        for stopped in self.stopping.values():
            stopped.result()


def current(service: str) -> list[str]:
    """Return the healthy containers of a service of the present image that are newer than .env."""
    name = common.model()["services"][service]["image"]
    image = json.loads(run("docker", "image", "inspect", name))[0]["Id"]
    changed = (common.PROJECT / ".env").stat().st_mtime
    return [
        container["Id"]
        for container in common.inspect(common.containers(service))
        if container["Image"] == image
        and datetime.fromisoformat(f"{container['Created'][:19]}+00:00").timestamp() > changed
        and common.healthy(container)
    ]


def stop(service: str, old: list[str]) -> None:
    """Stop containers, within stop_grace_period, and remove them."""
    run("docker", "stop", *old)
    run("docker", "rm", *old)
    report(f"{service}: replaced")


def at_once() -> int:
    """Return how many containers may start at the same time: what cores and memory allow, at least one."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        return 1  # the containers are in a virtual machine
    available = int(meminfo.partition("MemAvailable:")[2].split()[0]) // 1000
    return max(1, min(2 * (os.cpu_count() or 1), available // MEMORY))
