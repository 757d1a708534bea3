"""
What is wrong, one sentence for each problem: at /status/, at /metrics, and for ops/alarm, which asks /vm.

docs/runbook.md has a section for each kind of problem. Nothing is stored here but what the VMs report, and
since when a queue does not move: a problem is there as long as its cause.
"""

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import redis
from django.conf import settings
from django.db import connection as database
from kombu import Connection
from kombu.exceptions import OperationalError

from . import activity, alerts, brokers, metrics, queues
from .environment import env

logger = logging.getLogger(__name__)

TIMEOUT = 3  # seconds after which a service that does not answer is down
IN_A_ROW = 5  # failures of a task, without a success in between
FAILED_REQUESTS = 10  # of those of the last minutes, and
FAILED_SHARE = 0.05  # more than this share of them
KEPT = 600  # seconds that a VM's report counts
# Whatever reaches /vm, not more than this is kept.
VMS = 20
PROBLEMS = 50  # of each
TEXT = 300  # characters
AGE_LIMIT = env.int("QUEUE_AGE_LIMIT", default=3600)


@dataclass(frozen=True)
class Problem:
    """Something that a person has to look at."""

    problem: str  # the heading of its section in docs/runbook.md
    subject: str  # what has it: a queue, a task, a service; "" where there is one only
    sentence: str  # what is wrong, and what to do


# What is asked ------------------------------------------------------------------------------------


def checks(connection: Connection, other: Connection) -> dict[str, Callable[[], Any]]:
    """Return what is asked, each in a thread of its own; two of these functions use one connection each."""
    return {
        "broker": partial(queues.waiting, connection),
        "full": brokers.current().is_full,
        "aside": partial(aside, other),
        "cache": partial(activity.read, settings.QUEUES),
        "db": check_database,
        "reports": reports,
        "recent": recent,
        "alerts": alerts.firing,
    }


@dataclass(frozen=True)
class Recent:
    """What was counted in the last minutes."""

    failing: dict[str, int]  # failures of each task since its last success
    refused: int  # tasks that could not be sent
    requests: tuple[int, int]  # all, and those with 5xx


def recent() -> Recent:
    """Return it; RedisError when the cache does not answer."""
    lately = metrics.lately()
    requests = lately["errors"] + lately["others"], lately["errors"]
    return Recent(metrics.failing(), lately["refused"], requests)


def check_database() -> None:
    """Raise when the database does not answer."""
    try:
        with database.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        database.close()  # back to the pool: nothing else runs in this thread


@dataclass(frozen=True)
class Aside:
    """What waits and is not about to run."""

    stranded: dict[str, int]  # tasks in each queue without a worker
    dead: int  # letters
    still: dict[str, float]  # seconds, where the broker knows no ages


def aside(connection: Connection) -> Aside:
    """Return what waits and is not about to run; OperationalError when the broker does not answer."""
    with queues.reached(connection):
        dead = brokers.current().dead_letters(connection)
    motionless = still(connection) if brokers.current().AGE_UNKNOWN else {}
    stranded: dict[str, int] = {}
    # A RabbitMQ that is managed by others need not list its queues.
    with suppress(OperationalError):
        stranded = queues.stranded(connection)
    return Aside(stranded, dead, motionless)


def still(connection: Connection) -> dict[str, float]:
    """Return for how many seconds tasks have waited in each queue while none of it has ended."""
    held, (found, _) = queues.waiting(connection), activity.read(settings.QUEUES)
    key, now = "problems:still", time.time()
    with activity.store().pipeline() as pipe:
        for name, about in found.items():
            last = about.done[-12:] + about.failed[-12:]  # of two minutes
            if held[name].tasks and not any(last):
                pipe.hsetnx(key, name, now)
            else:
                pipe.hdel(key, name)
        pipe.hgetall(key)
        pipe.expire(key, 7 * 24 * 3600)
        since = pipe.execute()[-2]
    return {name.decode(): now - float(moment) for name, moment in since.items()}


def look() -> tuple[set[str], dict[str, Any]]:
    """Return the checks that failed or took too long, and the answers of the others."""
    connection, other = queues.connect(), queues.connect()
    asked = checks(connection, other)
    threads = ThreadPoolExecutor(len(asked), "problems")
    running = {name: threads.submit(check) for name, check in asked.items()}
    done, _ = wait(running.values(), TIMEOUT)
    for used in (connection, other):
        threads.submit(used.release)
    threads.shutdown(wait=False)
    answers = {
        name: future.result()
        for name, future in running.items()
        if future in done and not future.exception()
    }
    return asked.keys() - answers.keys(), answers


# What follows from the answers --------------------------------------------------------------------


def services(down: set[str], answers: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what a data service has."""
    if "broker" in down:
        yield Problem(
            "broker-down",
            "",
            "The broker does not answer: no task is sent or runs. Read its log, and start it.",
        )
    elif answers.get("full"):
        yield Problem(
            "broker-full",
            "",
            "The broker is full and accepts no tasks. Let the workers catch up, or give it more memory.",
        )
    if "cache" in down:
        yield Problem(
            "cache-down",
            "",
            "The cache does not answer, so what workers and beat do is unknown. Read its log, and start it.",
        )
    if "db" in down:
        yield Problem(
            "database-down",
            "",
            "The database does not answer: most pages and tasks fail. Read its log, and start it.",
        )


def workers(down: set[str], answers: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield each queue without a worker, and a silent beat; while a worker stops another is expected."""
    found, beat = answers.get("cache") or ({}, None)
    for queue, about in found.items():
        if not about.up and not about.stopping:
            yield Problem(
                "no-worker",
                queue,
                f"No worker consumes the queue {queue}, so its tasks wait. Read its worker's log, and start it.",
            )
    if beat is False:
        yield Problem(
            "beat-silent",
            "",
            "beat is silent: periodic tasks are not sent. Read its log, and start it.",
        )


def waiting(down: set[str], answers: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield each queue whose oldest task waits for too long, and what no worker will take."""
    beside = answers.get("aside") or Aside({}, 0, {})
    for queue, about in (answers.get("broker") or {}).items():
        age = about.oldest or beside.still.get(queue, 0)
        if age > age_limit(queue):
            yield Problem(
                "queue-stuck",
                queue,
                f"The queue {queue} is behind: its oldest task has waited for {duration(age)}."
                " See what its worker runs, or let it run more at a time.",
            )
    for queue, tasks in beside.stranded.items():
        yield Problem(
            "tasks-stranded",
            queue,
            f"The queue {queue} holds {queues.number(tasks)} and has no worker, since it is not in QUEUES."
            " Move them to another queue, or delete them.",
        )
    if dead := beside.dead:
        yield Problem(
            "dead-letters",
            "",
            f"There {'is 1 dead letter' if dead == 1 else f'are {dead} dead letters'}: messages that no"
            " worker could take. Look at them, then send them back or delete them.",
        )


def figures(down: set[str], answers: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what was counted in the last minutes, and what the rules of "monitoring" found."""
    recent = answers.get("recent") or Recent({}, 0, (0, 0))
    for task, count in recent.failing.items():
        if count >= IN_A_ROW:
            yield Problem(
                "tasks-fail",
                task,
                f"The task {task} failed {count} times in a row. Read its error, correct the cause, and"
                " send the failed tasks again.",
            )
    if recent.refused:
        yield Problem(
            "tasks-refused",
            "",
            f"{queues.number(recent.refused)} could not be sent in the last {metrics.LATELY} minutes."
            " See whether the broker is up and has room.",
        )
    requests, failed = recent.requests
    if failed >= FAILED_REQUESTS and failed > FAILED_SHARE * requests:
        yield Problem(
            "requests-fail",
            "",
            f"{failed} of {requests} requests in the last {metrics.LATELY} minutes were answered with 5xx."
            " Read the log of web.",
        )
    for alert in answers.get("alerts") or []:
        yield Problem(*alert)


RULES = (services, workers, waiting, figures)


def find(down: set[str], answers: Mapping[str, Any]) -> list[Problem]:
    """Return the problems that follow from the answers; a check that is in neither is not known yet."""
    found: list[Problem] = []
    for rule in RULES:
        try:
            found += rule(down, answers)
        except Exception:
            logger.exception("What is wrong cannot be told in part: %s", rule.__name__)
    return found


def exchange(report: dict[str, Any]) -> list[Problem]:
    """Store what a VM reports; return what this process sees itself."""
    store(report)
    return find(*look())


def current() -> list[Problem]:
    """Return what this process sees, and what the VMs reported; never raises."""
    down, answers = look()
    return find(down, answers) + reported(answers.get("reports") or [])


def age_limit(queue: str) -> int:
    """Return the seconds that a task may wait in a queue."""
    name = queue.upper().replace("-", "_")
    return env.int(f"QUEUE_{name}_AGE_LIMIT", default=AGE_LIMIT)


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.0f} hours"


# What the VMs report ------------------------------------------------------------------------------


def parse(body: bytes) -> dict[str, Any]:
    """Return what a VM reports, cut to what is kept; ValueError when it is anything else."""
    try:
        found = json.loads(body)
        listed = [
            Problem(name(one["problem"]), text(one["subject"]), text(one["sentence"]))
            for one in found["problems"][:PROBLEMS]
        ]
        numbers = ("backup", "certificate", "disk", "memory", "load")
        return {"vm": name(found["vm"]), "problems": [asdict(one) for one in listed]} | {
            what: number(found.get(what)) for what in numbers
        }
    except Exception as error:  # nothing of it is to be relied on
        raise ValueError("This is no report of a VM.") from error


def name(value: str) -> str:
    """Return the name of a VM or of a problem; ValueError when it is none."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", value):
        raise ValueError(value)
    return value


def text(value: str) -> str:
    """Return what can be printed of a text, and not more than TEXT of it."""
    return "".join(filter(str.isprintable, value[:TEXT]))


def number(value: object) -> float | None:
    """Return a number, None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def store(report: dict[str, Any]) -> None:
    """Store what a VM reports for KEPT seconds, and drop what is older; nothing without a cache."""
    try:
        cache: Any = activity.store()
        cache.hset("problems:vms", report["vm"], json.dumps(report | {"at": time.time()}))
        cache.expire("problems:vms", KEPT)
        kept = [one["vm"].encode() for one in reports()[:VMS]]
        if dropped := set(cache.hkeys("problems:vms")).difference(kept):
            cache.hdel("problems:vms", *dropped)
    except redis.RedisError as error:
        logger.warning("The report of %s is lost: %r", report["vm"], error)


def reports() -> list[dict[str, Any]]:
    """
    Return what the VMs reported within KEPT seconds, the newest first.

    Raises redis.RedisError when the cache does not answer.
    """
    found: Any = activity.store().hvals("problems:vms")
    recent = [one for one in map(json.loads, found) if one["at"] > time.time() - KEPT]
    return sorted(recent, key=lambda one: -one["at"])


def reported(found: list[dict[str, Any]]) -> list[Problem]:
    """Return the problems in reports, with the name of the VM before each sentence."""
    return [
        Problem(one["problem"], one["subject"], f"{report['vm']}: {one['sentence']}")
        for report in found
        for one in report["problems"]
    ]
