"""How ops/deploy brings images to the nodes of a swarm, besides the one that it deploys to; without a registry."""

import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, NoReturn, cast

from common import SSH, report

# What the engine is, on a line; then its images, with their tags and layers.
LOOK = """docker info --format=json && docker image ls --quiet --no-trunc | sort -u |
xargs --no-run-if-empty docker image inspect"""
# With containerd's store an image can have a name and no content.
TRY = "docker rm $(docker create --pull=never --network=none {image} true)"
Save = Callable[[list[str], set[str], IO[bytes]], int]
Known = Callable[[list[str], list[list[str]]], set[str]]
printing = threading.Lock()


class Node:
    """A node of a swarm, and what its engine has."""

    def __init__(self, name: str, host: str | None, images: list[str]) -> None:
        """Inspect a node, which ssh reaches as `host` and which needs `images`. Exits when that fails."""
        self.name = name
        if not host:
            self.stop("has no label ssh: ops/swarm label", f"{name} ssh=user@host")
        self.host = host
        done = self.ssh(LOOK)
        if done.returncode:
            self.stop("does not answer", f"{done.stderr.strip()} Or ops/swarm drain {name}")
        info, _, rest = done.stdout.partition("\n")
        self.info = json.loads(info)
        if not any("no-new-privileges" in each for each in self.info["SecurityOptions"] or []):
            self.stop("has an engine that allows new privileges", "Run there: ops/install --swarm")
        there = json.loads(rest or "[]")
        self.layers = [image["RootFS"].get("Layers", []) for image in there]
        tags = {tag for image in there for tag in image["RepoTags"] or []}
        self.lacking = [image for image in images if image not in tags]

    def ssh(self, command: str) -> subprocess.CompletedProcess:
        """Run a shell's line on the node."""
        return subprocess.run(
            [*SSH, self.host, command], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    def stop(self, why: str, instead: str) -> NoReturn:
        """Exit before anything was changed."""
        sys.exit(f"Stopped: {self.name} {why}. Nothing was changed. {instead}.")

    def ship(self, save: Save, known: Known) -> str:
        """Ship what is lacking, without the layers that the node has, or else with them; return why not."""
        if not self.lacking:
            return ""
        why = self.load(save, known(self.lacking, self.layers)) or self.incomplete()
        if why:
            why = self.load(save, set()) or self.incomplete()
        return f"{self.name}: {why}" if why else ""

    def load(self, save: Save, known: set[str]) -> str:
        """Ship without the known layers; return why the node did not take it, or ""."""
        with subprocess.Popen(
            [*SSH, self.host, "docker load --quiet"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as loading:
            size, pipe = 0, cast(IO[bytes], loading.stdin)
            with suppress(BrokenPipeError):
                size = save(self.lacking, known, pipe)
            printed = loading.communicate()[0].decode().strip()
        if loading.returncode or "no space left" in printed:
            return printed or "the connection was lost"
        with printing:
            report(f"{self.name}: shipped {', '.join(self.lacking)}, {size / 1e6:.1f} MB")
        return ""

    def incomplete(self) -> str:
        """Return which image it cannot run, or ""."""
        for image in self.lacking:
            if self.ssh(TRY.format(image=shlex.quote(image))).returncode:
                return f"it has only parts of {image}"
        return ""

    def remove_old(self, kept: set[str], names: set[str]) -> None:
        """Remove images of these names but the kept ones; that of a running container stays."""
        for name in names:
            # The first two columns of a table are name and tag.
            rows = self.ssh(f"docker image ls {shlex.quote(name)}").stdout.splitlines()[1:]
            tags = {":".join(row.split()[:2]) for row in rows}
            if old := sorted(tags - kept):
                self.ssh(f"docker image rm {shlex.join(old)}")


def look(found: list[dict]) -> list[Node]:
    """Inspect the nodes that ops/release has named, all at the same time."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda each: Node(each["name"], each["ssh"], each["images"]), found))


def ship(nodes: list[Node], save: Save, known: Known) -> None:
    """Ship to all nodes at the same time; exits when one does not take it."""
    with ThreadPoolExecutor() as pool:
        failed = list(filter(None, pool.map(lambda node: node.ship(save, known), nodes)))
    if failed:
        sys.exit(f"Stopped: {'; '.join(failed)}. The site is as it was.")


def remove_old(nodes: list[Node], images: str) -> None:
    """Remove from nodes what the first one, which has these images, no longer keeps."""
    kept = {":".join(row.split()[:2]) for row in images.splitlines()[1:]}
    names = {image.rpartition(":")[0] for image in kept}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda node: node.remove_old(kept, names), nodes))
