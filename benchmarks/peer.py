"""
A peer's compose project beside this template, in one run: pages, a flood, and a redeploy.

Its containers get a project name of their own and its workers three more tasks, by a second compose
file; nothing in its folder is changed. Its page has to answer to "Host: localhost".
"""

import argparse
import http.client
import json
import os
import secrets
import shlex
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from common import ROOT, Failed, Parts, Stack, begin_to_clean, main, report, run, stack
from isolation import NOTIFY, p99, visit
from tables import Table
from web import find_wrk, load

CLIENTS = 10  # during the redeploy
LONG = 15  # seconds of two tasks that run when it begins
REPLACE = "docker compose up --detach --build --force-recreate --no-deps"
PATIENCE = 70  # seconds without progress after which what is not done is lost
NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
FIGURES = (
    "requests/s, 32 connections",
    "their p99, ms",
    "short task, idle, p99, ms",
    "short task beside a flood, p99, ms",
    "page, idle, p99, ms",
    "page beside a flood, p99, ms",
    "redeploy, s",
    "requests meanwhile, failed",
    "tasks meanwhile, lost",
)


@dataclass
class Side:
    """One of the two: where its page is, where its tasks go, and how it is redeployed."""

    name: str
    project: Stack
    notes: Path  # a folder that its workers have as /bench
    port: int
    path: str
    web: str  # service
    app: str
    queues: tuple[str, str]  # of the flood, of the short tasks; "" is the app's default
    redeploy: Callable[[], object] = field(repr=False)

    def send(self, step: str, *words: object) -> dict:
        """Send tasks from a container of its own and return what was sent."""
        mount = ("--volume", f"{self.notes}:/bench", "--env", "PYTHONPATH=/bench")
        one_off = ("run", "--rm", "--no-TTY", "--no-deps", "--entrypoint", "python", *mount)
        command = (*one_off, self.web, "-m", "peer_tasks", self.app, step, *map(str, words))
        return json.loads(self.project.compose(*command, timeout=600).splitlines()[-1])

    def noted(self, what: str) -> list[float]:
        """Return the values of one kind of note."""
        lines = [line.split() for line in (self.notes / "notes").read_text().splitlines()]
        return [float(value) for kind, value in lines if kind == what]

    def wait_for(self, what: str, count: int) -> int:
        """Wait for so many different notes, or until no more come; return how many there are."""
        found, since = 0, time.monotonic()
        while found < count and time.monotonic() < since + PATIENCE:
            time.sleep(0.5)
            if (now := len(set(self.noted(what)))) > found:
                found, since = now, time.monotonic()
        return found


def measure(quick: bool, **options: object) -> Parts:
    """Return the table of both sides."""
    given = argparse.Namespace(**options)
    with tempfile.TemporaryDirectory(prefix="dccbench-peer") as place:
        folders = [Path(place, name) for name in ("ours", "theirs")]
        for folder in folders:
            prepare(folder)
        with stack("peer", lambda folder: add_tasks(folder, folders[0])) as project:
            wrk, scripts = find_wrk(project), project.folder.parent
            release(project, "v1")
            ours = measure_side(our_side(project, folders[0]), wrk, scripts, quick)
            project.compose("stop", timeout=300)  # the other side has the machine to itself
            theirs = measure_peer(given, folders[1], wrk, scripts, quick)
    rows = [(name, *both) for name, *both in zip(FIGURES, ours, theirs, strict=True)]
    return [Table(("figure", "this template", given.name), rows)]


def prepare(folder: Path) -> None:
    """Make a folder with the tasks, in which any user may take notes."""
    folder.mkdir()
    shutil.copy(ROOT / "benchmarks" / "bench" / "peer_tasks.py", folder)
    (folder / "notes").touch()
    for path, mode in ((folder.parent, 0o755), (folder, 0o777), (folder / "notes", 0o666)):
        path.chmod(mode)


def override(workers: list[str], notes: Path) -> str:
    """Return a compose file that gives workers the tasks: Celery's command line reads the environment."""
    more = {
        "environment": {"CELERY_WORKER_INCLUDE": "peer_tasks", "PYTHONPATH": "/bench"},
        "volumes": [f"{notes}:/bench"],
    }
    return json.dumps({"services": dict.fromkeys(workers, more)})


def add_tasks(folder: Path, notes: Path) -> None:
    """Add the tasks to the workers of the rendered project."""
    workers = ["worker-default", "worker-crawl", "worker-notify"]
    (folder / "bench.yaml").write_text(override(workers, notes))
    with (folder / ".env").open("a") as env:
        env.write("COMPOSE_FILE=compose.yaml:compose.production.yaml:bench.yaml\n")


def release(project: Stack, tag: str) -> None:
    """Build a version and take it live with ops/release, as ops/deploy does on a VM."""
    version = project.folder / "versions" / tag
    shutil.copytree(project.folder, version, ignore=shutil.ignore_patterns("versions", ".env"))
    # The proxy's image, of nginx and error pages, stays the same, and so does what holds the port.
    tags = {"IMAGE_TAG": tag, "PROXY_TAG": "v1"}
    (version / "tags").write_text("".join(f"{name}={value}\n" for name, value in tags.items()))
    command = ("docker", "compose", "build", "--quiet")
    run(*command, cwd=project.folder, timeout=300, env=os.environ | tags)
    run(str(version / "ops" / "release"), tag, cwd=project.folder, timeout=500)


def our_side(project: Stack, notes: Path) -> Side:
    """Return the rendered project's side; its redeploy is of changed source."""

    def redeploy() -> None:
        with (project.folder / "stack" / "tasks.py").open("a") as file:
            file.write("# changed\n")
        release(project, "v2")

    lines = (project.folder / ".env").read_text().splitlines()
    port = int(next(line for line in lines[::-1] if line.startswith("HTTP_PORT")).split(":")[1])
    queues = ("crawl", "notify")
    return Side("this template", project, notes, port, "/", "web", "config", queues, redeploy)


def measure_peer(
    given: argparse.Namespace, notes: Path, wrk: list[str], scripts: Path, quick: bool
) -> list[str]:
    """Start the peer, measure it, and remove its containers, networks, volumes and images."""
    folder = given.folder.resolve()
    files = given.file or [name for name in NAMES if (folder / name).exists()][:1]
    if not files:
        raise Failed(f"{folder} has none of {', '.join(NAMES)}: name its files with --file")
    more = notes.parent / "bench.yaml"
    more.write_text(override(given.worker, notes))
    project = Stack(f"dccbench-peer-{secrets.token_hex(3)}", folder)
    paths = [str(folder / name) for name in files]
    project.env = os.environ | {
        "COMPOSE_PROJECT_NAME": project.slug,
        "COMPOSE_FILE": os.pathsep.join([*paths, str(more)]),
    }

    command = given.redeploy or shlex.join([*REPLACE.split(), given.web, *given.worker])

    def redeploy() -> None:
        run("sh", "-c", command, cwd=folder, timeout=600, env=project.env)

    queues = (given.flood_queue, given.short_queue)
    side = Side(
        given.name, project, notes, given.port, given.path, given.web, given.app, queues, redeploy
    )
    try:
        report(f"{given.name}: building and starting")
        project.build()
        project.up(timeout=300)
        return measure_side(side, wrk, scripts, quick)
    finally:
        begin_to_clean()
        project.remove()


def measure_side(side: Side, wrk: list[str], scripts: Path, quick: bool) -> list[str]:
    """Return the figures of one side, in the order of FIGURES."""
    wait_for_page(side)
    report(f"{side.name}: pages")
    pages = load(scripts, wrk, ["127.0.0.1"], side.port, side.path, quick)
    idle, beside = (flood(side, count, quick) for count in (0, 300 if quick else 2000))
    took, requests, lost = redeployed(side)
    return [
        f"{pages['requests'] / pages['seconds']:.0f}",
        f"{pages['p99']:.1f}",
        idle[0],
        beside[0],
        idle[1],
        beside[1],
        f"{took:.1f}",
        requests,
        lost,
    ]


def wait_for_page(side: Side) -> None:
    """Wait until the page is served; Failed when it is not within two minutes."""
    until = time.monotonic() + 120
    while ask(side) != 200:
        if time.monotonic() > until:
            raise Failed(f"{side.name}: localhost:{side.port}{side.path} does not answer 200")
        time.sleep(0.5)


def ask(side: Side) -> int:
    """Ask for the page on a connection of its own; return the status, 0 without an answer."""
    client = http.client.HTTPConnection("127.0.0.1", side.port, timeout=30)
    try:
        client.request("GET", side.path, headers={"Host": "localhost"})
        answer = client.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        client.close()


def flood(side: Side, count: int, quick: bool) -> tuple[str, str]:
    """Send short tasks and ask for pages beside `count` long tasks; return the p99 of both, in ms."""
    report(f"{side.name}: {'a flood' if count else 'idle'}")
    (side.notes / "notes").write_text("")
    over, seconds = threading.Event(), 4 if quick else 20
    with ThreadPoolExecutor(1) as visiting:
        visits = visiting.submit(visit, "127.0.0.1", over, side.port, side.path)
        try:
            sent = side.send("flood", count, *side.queues, NOTIFY, seconds)
        finally:
            over.set()
    if count and len(side.noted("burned")) >= count:
        raise Failed(f"{side.name}: the flood was over before the measurement; send more tasks")
    side.wait_for("burned", count)  # first: in one queue for all the short tasks are behind them
    notified = side.wait_for("notified", sent["sent"])
    if notified < sent["sent"]:
        report(f"{side.name}: {sent['sent'] - notified} short tasks were not done")
    if notified < 2:
        raise Failed(f"{side.name}: no short task was done; name every worker with --worker")
    pages = [took for due, took in visits.result() if sent["begin"] <= due < sent["end"]]
    failed = sum(took is None for took in pages)
    times = [1000 * took for took in pages if took is not None]
    text = f"{p99(times):.1f}" + (f" ({failed} failed)" if failed else "")
    return f"{1000 * p99(side.noted('notified')):.1f}", text


def redeployed(side: Side) -> tuple[float, str, str]:
    """Redeploy under load; return the seconds, requests and failed ones, tasks and lost ones."""
    report(f"{side.name}: redeploying")
    (side.notes / "notes").write_text("")
    answers: Counter[int] = Counter()
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(0.1):
            answers[ask(side)] += 1

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        sending = pool.submit(side.send, "load", side.queues[0], LONG)
        clients = [pool.submit(go_on) for _ in range(CLIENTS)]
        try:
            time.sleep(5)
            started = time.monotonic()
            side.redeploy()
            took = time.monotonic() - started
            wait_for_page(side)
            time.sleep(3)
        finally:
            over.set()
            (side.notes / "over").touch()
        sent = sending.result()
    for client in clients:
        client.result()
    done = side.wait_for("done", sent["accepted"])
    asked, served = answers.total(), answers.pop(200)
    kinds = ", ".join(f"{status or 'no answer'}: {count}" for status, count in answers.items())
    failed = f"{asked - served} ({kinds})" if kinds else "0"
    tasks = f"{sent['accepted']}, {sent['accepted'] - done}"
    refused = f" ({sent['refused']} refused)" if sent["refused"] else ""
    return took, f"{asked}, {failed}", tasks + refused


def choose(parser: argparse.ArgumentParser) -> None:
    """Define what is to be known about the peer."""
    add = parser.add_argument
    add("folder", type=Path, help="the peer's compose project")
    add("--name", default="the peer", help="in the table")
    add("--file", nargs="+", metavar="FILE", help="its compose files; the default is compose's")
    add("--port", type=int, required=True, help="that it publishes on this machine")
    add("--path", default="/", help="of a page that answers 200")
    add("--web", default="web", metavar="SERVICE", help="in whose container its Celery app is")
    add("--worker", nargs="+", default=["worker"], metavar="SERVICE")
    add("--app", default="config", help='as for "celery --app"')
    add("--flood-queue", default="", metavar="QUEUE", help="the default is the app's")
    add("--short-queue", default="", metavar="QUEUE", help="of the short tasks")
    add("--redeploy", metavar="COMMAND", help=f'the default is "{REPLACE} WEB WORKER…"')


if __name__ == "__main__":
    main(__doc__, measure, longest=1500, options=choose)
