"""
What faults do to accepted tasks, on both brokers, with the template's settings and Celery's own.

Every cell sends tasks, lets one fault happen while they run, and asks the ledger in PostgreSQL
(tests/faults) what became of them. About a minute each, the 40 and 50 kills about five; --file
collects the rows of several runs.
"""

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from subprocess import SubprocessError

from common import ROOT, Parts, add_save, finish, heading, report
from docker.errors import DockerException
from tables import Result, Table

sys.path.append(str(ROOT))
from tests.faults import faults
from tests.faults.helpers import (
    RETURN,
    RETURNS,
    SWEEP,
    TIME_LIMIT,
    WORKER,
    Ledger,
    Verdict,
    ledger_stack,
    main_process,
    wait_until_healthy,
)
from tests.stack.stack import Stack, wait_for

BROKERS = ["redis", "rabbitmq"]
SETTINGS = ["template", "defaults"]
KOMBU = "kombu"  # the template's, with kombu's own transport for Redis
BEGUN = 30  # tasks done before a fault
MORE = 12  # tasks done after which a worker has recovered; with Celery's defaults it may hold 10
PATIENCE = RETURN + 2 * SWEEP  # seconds without any progress after which what is not done is lost
STOCK = 500  # tasks that wait, at least, while a service is killed again and again
TICK = 2  # seconds between two of beat's ticks
BEAT = {
    "kills": "SIGKILLs",
    "due": "ticks due",
    "seen": "ticks seen",
    "longest": "longest gap, s",
    "shortest": "shortest gap, s",
}
KILLS = {
    "kills": "SIGKILLs",
    "accepted": "accepted",
    "lost": "lost",
    "doubled": "doubled",
    "returned": "of these had returned",
}
HEAD = "accepted, of", "lost", "doubled", "longest delay, s", "recovered, s", "healthy again"

FAILURES = AssertionError, ValueError, OSError, SubprocessError, DockerException

SCHEDULE = f"""
CELERY_BEAT_SCHEDULE = {{
    "tick": {{
        "task": "ledger.tasks.tick",
        "schedule": {TICK},
        "args": ["tick"],
        "options": {{"queue": "crawl"}},
    }},
}}
"""

# Celery's own app class and settings. The addresses, the queues' names and the number of children stay;
# so do the signals, with the heartbeats without which compose would take the services for dead.
DEFAULTS = """
CELERY_TASK_ROUTES |= {f"{name}.*": {"queue": name} for name in QUEUES}
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TIMEZONE = TIME_ZONE
CELERY_WORKER_CONCURRENCY = 2
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 3600}  # Celery's default, made explicit
"""
APP = """from celery import Celery
from stack.celery import signals

app = Celery("config")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
signals.connect()
"""


def once(fault: Callable[[Stack], None]) -> Callable[[Ledger, str], None]:
    """Let a fault happen while tasks of 0.2 s run."""

    def happen(ledger: Ledger, key: str) -> None:
        ledger.wait_for_progress(key, BEGUN)
        fault(ledger.stack)

    return happen


def within_long(fault: Callable[[Stack], None]) -> Callable[[Ledger, str], None]:
    """Let a fault happen while both children run a task that is told to end before it does."""

    def happen(ledger: Ledger, key: str) -> None:
        # The soft time limit is at 0.9 of the hard one.
        ledger.send("overrun", f"{key}-long", 2, TIME_LIMIT * 0.92)
        wait_for("both run", lambda: ledger.ask("sum(started)", key) == ["2"], seconds=120)
        fault(ledger.stack)

    return happen


def eat(ledger: Ledger, key: str) -> None:
    """Run a task that uses up the worker's memory."""
    ledger.wait_for_progress(key, BEGUN)
    ledger.send("eat", f"{key}-eat", 1, 1000)
    wait_for("its start", lambda: ledger.ask("sum(started)", key) != ["0"], seconds=120)
    faults.run_out_of_memory(ledger.stack)


def kill_often(stack: Stack, service: str, ready: Callable[[], None], times: int) -> None:
    """SIGKILL a main process `times` times; start it again, since the engine waits ever longer."""
    for number in range(times):
        ready()
        time.sleep(random.uniform(0, 1))
        faults.kill(main_process(stack, service))
        stack.containers()[service].restart(timeout=0)
        if number % 10 == 9:
            report(f"{service}: {number + 1} kills")


def kill_worker_often(ledger: Ledger, key: str) -> None:
    """Kill the worker 40 times while short tasks run."""
    progress = ledger.wait_for_progress
    kill_often(ledger.stack, WORKER, lambda: progress(key, BEGUN), 40)


@dataclass(frozen=True)
class Fault:
    """A row of the table: what happens, beside which tasks."""

    text: str
    happen: Callable[[Ledger, str], None]
    count: int = 150  # tasks
    seconds: float = 0.2  # that each takes; there are two children
    pause: float = 0.08  # seconds between two sends: more come than can be done


FAULTS = {
    "none": Fault("no fault", once(lambda stack: None)),
    "kill": Fault("worker SIGKILLed", once(faults.kill_main_process)),
    "kill-often": Fault("worker SIGKILLed 40 times", kill_worker_often, 6000, 0.02, 0),
    "kill-child": Fault("pool child SIGKILLed", once(faults.kill_pool_child)),
    "memory": Fault("worker out of memory", eat),
    "stop": Fault("worker stopped and started", once(faults.stop_and_start)),
    "stop-long": Fault(
        "worker stopped and started, long tasks", within_long(faults.stop_and_start)
    ),
    "restart": Fault("worker restarted", once(faults.restart)),
    "restart-long": Fault("worker restarted, long tasks", within_long(faults.restart)),
    "recreate": Fault("worker recreated", once(faults.recreate)),
    "recreate-long": Fault("worker recreated, long tasks", within_long(faults.recreate)),
    "broker-restart": Fault("broker restarted", once(faults.restart_broker)),
    "broker-kill": Fault("broker SIGKILLed", once(faults.kill_broker)),
    "broker-pause": Fault("broker paused for 60 s", once(faults.pause_broker)),
    "network": Fault("worker cut off for 5 s", once(faults.cut_network)),
    "database": Fault("database restarted", once(faults.restart_database)),
}


def measure(ledger: Ledger, name: str) -> dict[str, object]:
    """Let a fault happen under load; give the row of it."""
    fault, key = FAULTS[name], f"{name}-{time.time_ns()}"
    wait_until_healthy(ledger.stack)
    with ThreadPoolExecutor(1) as pool:
        load = (fault.count, fault.seconds)
        sender = pool.submit(ledger.send, "work", key, *load, pause=fault.pause)
        fault.happen(ledger, key)
        over = time.time()
        sender.result()
    healthy = True
    try:
        wait_until_healthy(ledger.stack)
    except AssertionError as error:
        healthy = report(str(error)) or False
    verdict = drain(ledger, key)
    if verdict.lost or not healthy:  # the next fault meets a worker without a past
        faults.recreate(ledger.stack)
    sent, recovered = ledger.ask(
        "count(*), (array_agg(extract(epoch FROM first_done_at) ORDER BY first_done_at)"
        f" FILTER (WHERE first_done_at > to_timestamp({over})))[{MORE}] - {over}",
        key,
    )
    waited = round(float(recovered), 1) if recovered else "too few left"
    return asdict(verdict) | {"sent": int(sent), "recovered": waited, "healthy": healthy}


def drain(ledger: Ledger, key: str) -> Verdict:
    """Wait until every accepted task is done, or none was for PATIENCE seconds; then judge."""
    lost, since = None, time.monotonic()
    while (verdict := ledger.judge(key)).lost:
        if verdict.lost != lost:
            lost, since = verdict.lost, time.monotonic()
        elif time.monotonic() > since + PATIENCE:
            break
        time.sleep(1)
    return verdict


def measure_kills(ledger: Ledger, service: str, times: int) -> dict[str, object]:
    """
    SIGKILL a service that many times while short tasks are sent and run; return the row of it.

    Of a task that was done twice, the first time may have been cut short between the commit of what it
    did and its return: no broker can know that it was done. "returned" counts the others.
    """
    key, begun = f"kills-{service}-{time.time_ns()}", time.monotonic()
    returns: Counter[str] = Counter()
    read = time.time()
    kill = faults.kill_broker if service == "broker" else faults.kill_main_process
    sender = None
    with ThreadPoolExecutor(1) as pool:
        for number in range(times):
            if (sender is None or sender.done()) and ledger.judge(key).lost < STOCK:
                prefix = f"{key}-{number}"
                sender = pool.submit(ledger.send, "work", prefix, 2 * STOCK, 0.02, pause=0)
            ledger.wait_for_progress(key, 15)
            time.sleep(random.uniform(0, 0.6))
            kill(ledger.stack)
            ledger.stack.containers()[service].restart(timeout=0)
            if number % 10 == 9:
                read = count_returns(ledger.stack, read, returns)
                each = (time.monotonic() - begun) / (number + 1)
                left = round(each * (times - number - 1) / 60)
                report(f"{service}: {number + 1} of {times} kills, {left} minutes left")
    wait_until_healthy(ledger.stack)
    verdict = drain(ledger, key)
    count_returns(ledger.stack, read, returns)
    returned = sum(count > 1 for found, count in returns.items() if found.startswith(key))
    return {"service": service, "kills": times, "returned": returned} | asdict(verdict)


def count_returns(stack: Stack, since: float, returns: Counter[str]) -> float:
    """Count the tasks that have returned since then, by the worker's log; return the time of now."""
    now = time.time()
    log = stack.containers()[WORKER].logs(since=since, until=now).decode(errors="replace")
    returns.update(re.findall(rf"^{RETURNS}(\S+)$", log, re.MULTILINE))
    return now


def measure_beat(ledger: Ledger, times: int = 50) -> dict[str, object]:
    """Kill beat 50 times, each time after a tick; give what the ledger saw of its ticks."""

    def ticks() -> list[float]:
        times = "extract(epoch FROM accepted_at)::text"
        _, found = ledger.ask(f"count(*), string_agg({times}, ' ' ORDER BY accepted_at)", "tick")
        return [float(tick) for tick in found.split()]

    def one_more() -> None:
        before = len(ticks())
        wait_for("a tick", lambda: len(ticks()) > before, seconds=60)

    one_more()
    begin = ticks()[-1]
    kill_often(ledger.stack, "beat", one_more, times)
    one_more()
    seen = [tick for tick in ticks() if tick >= begin]
    gaps = [later - earlier for earlier, later in pairwise(seen)]
    return {
        "kills": times,
        "due": round((seen[-1] - begin) / TICK) + 1,
        "seen": len(seen),
        "longest": round(max(gaps), 1),
        "shortest": round(min(gaps), 1),
    }


@contextmanager
def running(broker: str, settings: str) -> Iterator[Ledger]:
    """Start a stack with the ledger; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        stack = ledger_stack(Path(folder), broker=broker)
        with (stack.folder / "config/settings.py").open("a") as file:
            file.write(SCHEDULE + (DEFAULTS if settings == "defaults" else ""))
        if settings == KOMBU:
            stack.set(REDIS_TRANSPORT="kombu")
        if settings == "defaults":
            (stack.folder / "config/celery.py").write_text(APP)
        try:
            # And what these need. The queue "default" has a part: some retries on RabbitMQ go there.
            stack.up("--build", "web-a", WORKER, "worker-default", "beat")
            yield Ledger(stack)
        finally:
            report("cleaning up")
            stack.remove()


def tables(rows: list[dict]) -> Parts:
    """Return the tables of the rows, the last one of each cell, in the order of the lists above."""
    found = {(row["fault"], row["broker"], row["settings"]): row for row in rows}
    lines, beats = [], []
    for cell in product([*FAULTS, "beat"], BROKERS, [*SETTINGS, KOMBU]):
        if not (row := found.get(cell)):
            continue
        if row["fault"] == "beat":
            beats.append((row["broker"], *(row[name] for name in BEAT)))
            continue
        figures = (f"{row['accepted']}, {row['sent']}", row["lost"], row["doubled"])
        figures += (f"{row['longest']:.1f}", row["recovered"])
        lines.append((FAULTS[cell[0]].text, *cell[1:], *figures, "yes" if row["healthy"] else "NO"))
    kills = [
        (row["service"], row["broker"], row["settings"], *(row[name] for name in KILLS))
        for row in rows
        if row["fault"] == "kills"
    ]
    both = [
        Table(("killed", "broker", "settings", *KILLS.values()), kills),
        Table(("fault", "broker", "settings", *HEAD), lines),
        Table(("beat", *BEAT.values()), beats),
    ]
    return [each for each in both if each.rows]


def measure_all(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Measure one cell after the other and give its row; one that fails is told and left out."""
    for broker, settings in product(options.broker, options.settings):
        names = [name for name in options.fault if name != "beat" or settings == "template"]
        if options.kills:
            names = ["kills"]
        if not names:
            continue
        report(f"starting a stack on {broker} with the settings: {settings}")
        with running(broker, settings) as ledger:
            for name in names:
                report(f"{broker}, {settings}: {name}")
                try:
                    if name == "kills":
                        row = measure_kills(ledger, options.of, options.kills)
                    else:
                        row = measure_beat(ledger) if name == "beat" else measure(ledger, name)
                except FAILURES as error:
                    report(f"{name} failed: {error}")
                    faults.recreate(ledger.stack)
                    continue
                yield {"fault": name, "broker": broker, "settings": settings} | row


def main() -> None:
    """Read the options, measure, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", nargs="+", choices=BROKERS, default=BROKERS)
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS, KOMBU], default=SETTINGS)
    names = [*FAULTS, "beat"]
    parser.add_argument("--fault", nargs="*", choices=names, default=names, help="or none of them")
    parser.add_argument("--kills", type=int, help="nothing but so many SIGKILLs, 2 to 4 s for each")
    services = {"choices": [WORKER, "broker"], "default": WORKER}
    parser.add_argument("--of", help="the service that --kills means", **services)
    parser.add_argument("--file", type=Path, help="add the rows to FILE, and print all that it has")
    add_save(parser)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    first, rows = heading(), []
    try:
        for row in measure_all(options):
            report(json.dumps(row))
            rows.append(row)
            if options.file:
                with options.file.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    except KeyboardInterrupt:
        sys.exit(130)
    if options.file:
        rows = [json.loads(line) for line in options.file.read_text().splitlines()]
    name = "kills" if options.kills else "faults"
    finish(name, Result(first, tables(rows)), options.save)


if __name__ == "__main__":
    main()
