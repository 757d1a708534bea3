"""How cost grows with queues, with replicas of a worker, with waiting and with failed tasks."""

import argparse
import contextlib
import http.client
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from common import Failed, Parts, Stack, add_bench, main, report, run, stack, working_set
from footprint import MIB, idle
from tables import Table

WORKER = "worker-default"
QUEUES = [1, 2, 4, 8, 16]
REPLICAS = [1, 2, 4]
WAITING = [1000, 10_000, 100_000, 1_000_000]
FAILURES = [10_000, 100_000, 1_000_000]
MEMORY = (4096, 3072)  # MiB of the broker's container, of its data: for a million of either
STAFF = """
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.backends.db import SessionStore
model = get_user_model()
user = model.objects.filter(username="bench").first()
user = user or model.objects.create_user("bench", is_staff=True)
session = SessionStore()
session[SESSION_KEY] = str(user.pk)
session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
session[HASH_SESSION_KEY] = user.get_session_auth_hash()
session.create()
print(settings.SESSION_COOKIE_NAME, session.session_key)
"""


def measure(quick: bool, part: list[str]) -> Iterator[tuple[str, Parts]]:
    """Yield the table of each part once it is measured."""
    left = sum(PARTS[name][1] for name in part)
    for name in part:
        act, minutes = PARTS[name]
        report(f"{name}: about {minutes} minutes of {left} that are left; less with --quick")
        yield f"scale-{name}", act(quick)
        left -= minutes


def queues(quick: bool) -> Parts:
    """Return what each number of queues costs."""
    settle, window = (5, 10) if quick else (20, 60)  # seconds
    rows = []
    for count in QUEUES[:2] if quick else QUEUES:
        names = ", ".join(f"q{number}" for number in range(1, count)) or "none"
        with stack("queues", add_bench, f"queues={names}", "example=false") as project:
            report(f"{count} queues: building and starting")
            project.build()
            healthy = project.up(timeout=300)
            report(f"{count} queues: idling for {settle} + {window} s")
            time.sleep(settle)
            memory, cpu = idle(project, window)
            report(f"{count} queues: replacing each worker")
            started = time.monotonic()
            run(str(project.folder / "ops" / "roll"), cwd=project.folder, timeout=500)
            rolled = time.monotonic() - started
        used, busy = sum(memory.values()), sum(cpu.values())
        rows.append((count, f"{used:.0f}", f"{healthy:.1f}", f"{busy:.2f}", f"{rolled:.1f}"))
    head = ("queues", "idle memory, MiB", "`up` until healthy, s", "idle CPU, s/min")
    return [Table((*head, "ops/roll of every worker, s"), rows)]


def replicas(quick: bool) -> Parts:
    """Return how fast replicas of one worker drain its queue."""
    seconds = 3 if quick else 10
    rows = []
    with stack("replicas", add_bench) as project:
        report("building and starting")
        project.build()
        for count in REPLICAS:
            rates = []
            for task in ("nothing", "wait"):
                report(f"{count} replica(s), {task}")
                project.up(f"--scale={WORKER}={count}")
                for worker in workers(project):
                    worker.stop(timeout=60)
                project.python("bench.scale", "clear")
                project.python("bench.scale", "fill", 20_000 if quick else 100_000, task)
                project.up(f"--scale={WORKER}={count}")
                found = project.python("bench.scale", "rate", seconds)
                if not found["left"]:
                    raise Failed("the queue was empty too early; fill it with more tasks")
                rates.append(found["rate"])
            rows.append((count, *(f"{rate:.0f}" for rate in rates)))
    head = ("replicas of one worker", "tasks/s that do nothing", "tasks/s that wait 50 ms")
    return [Table(head, rows)]


def waiting(quick: bool) -> Parts:
    """Return what each number of waiting tasks costs."""
    sends, seconds = (200, 2) if quick else (2000, 10)
    rows = []
    with large_broker("waiting") as project:
        for worker in workers(project):
            worker.stop(timeout=60)
        for count in WAITING[:2] if quick else WAITING:
            report(f"{count:,} waiting tasks")
            project.python("bench.scale", "fill", count - min(sends, count // 2), timeout=400)
            sent = project.python("bench.scale", "send", min(sends, count // 2))["rate"]
            shown = [command(project, "queues"), page(project, "/status/"), *broker(project)]
            (worker,) = workers(project)
            worker.start()
            drained = project.python("bench.scale", "rate", seconds)["rate"]
            worker.stop(timeout=60)
            project.python("bench.scale", "clear", timeout=300)
            rows.append((f"{count:,}", f"{sent:.0f}", f"{drained:.0f}", *shown))
    head = ("waiting tasks", "sending, tasks/s", "draining, tasks/s", "`queues`, s", "/status/, ms")
    return [Table((*head, *BROKER), rows), note()]


def failed(quick: bool) -> Parts:
    """Return what each number of failed tasks costs."""
    rows, before = [], 0
    with large_broker("failed") as project:
        for count in FAILURES[:1] if quick else FAILURES:
            report(f"{count:,} failed tasks")
            project.python("bench.scale", "failures", count - before, timeout=500)
            before = count
            shown = [command(project, "failed"), page(project, "/status/failed/")]
            rows.append((f"{count:,}", *shown, *broker(project)))
    return [Table(("failed tasks", "`failed`, s", "/status/failed/, ms", *BROKER), rows), note()]


BROKER = ("broker's data, MiB", "its container, MiB", "its restart, s")
PARTS = {  # with the minutes that each takes
    "queues": (queues, 14),
    "replicas": (replicas, 3),
    "waiting": (waiting, 6),
    "failed": (failed, 5),
}


def note() -> str:
    """Return how large the broker may get."""
    return (
        f"BROKER_MEMORY={MEMORY[0]}m and BROKER_MAX_MEMORY={MEMORY[1]}mb, instead of 512m and 256mb."
        " All but the last tasks are copies of one that was sent."
    )


@contextlib.contextmanager
def large_broker(purpose: str) -> Iterator[Stack]:
    """Start a stack whose broker has room for a million tasks."""

    def change(folder: Path) -> None:
        add_bench(folder)
        with (folder / ".env").open("a") as env:
            env.write(f"BROKER_MEMORY={MEMORY[0]}m\nBROKER_MAX_MEMORY={MEMORY[1]}mb\n")

    with stack(purpose, change) as project:
        report("building and starting")
        project.build()
        project.up()
        yield project


def workers(project: Stack) -> list:
    """Return the containers of the measured worker, also those that are stopped."""
    label = f"com.docker.compose.service={WORKER}"
    return project.engine.containers.list(True, filters={"label": [project.own()["label"], label]})


def command(project: Stack, name: str) -> str:
    """Return the seconds of a command of manage.py, the start of Python included."""
    times = []
    for _ in range(3):
        started = time.monotonic()
        project.compose("exec", "--no-TTY", "web-a", "./manage.py", name)
        times.append(time.monotonic() - started)
    return f"{median(times):.1f}"


def page(project: Stack, path: str) -> str:
    """Return the milliseconds of a page that staff sees, the median of ten."""
    shell = ("exec", "--no-TTY", "web-a", "./manage.py", "shell", "--verbosity=0", "-c", STAFF)
    cookie = "=".join(project.compose(*shell).split()[-2:])
    headers = {"Host": "localhost", "Cookie": cookie}
    times = []
    for _ in range(10):
        started = time.monotonic()
        connection = http.client.HTTPConnection(project.address("proxy"), 8080, timeout=60)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            raise Failed(f"{path} answers {answer.status}")
        times.append(time.monotonic() - started)
    return f"{1000 * median(times):.0f}"


def broker(project: Stack) -> tuple[str, str, str]:
    """Return the MiB of its data and of its container, and the seconds from its start until it answers."""
    data = project.python("bench.scale", "memory")["bytes"] / MIB
    container = project.containers()["broker"]
    used = working_set(container.stats(stream=False, one_shot=True)["memory_stats"]) / MIB
    container.stop(timeout=120)
    started = time.monotonic()
    container.start()
    while b"PONG" not in container.exec_run(["redis-cli", "ping"]).output:
        if time.monotonic() > started + 300:
            raise Failed("the broker does not answer five minutes after its start")
        time.sleep(0.05)
    seconds = time.monotonic() - started
    project.up()
    return f"{data:.0f}", f"{used:.0f}", f"{seconds:.1f}"


def choose(parser: argparse.ArgumentParser) -> None:
    """Define the option that chooses parts."""
    parser.add_argument(
        "--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="only these"
    )


if __name__ == "__main__":
    main(__doc__, measure, longest=2700, options=choose)
