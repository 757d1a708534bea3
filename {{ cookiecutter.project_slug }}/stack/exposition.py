"""
What /metrics answers: all figures of the stack in Prometheus' text format, whichever web instance is asked.

https://prometheus.io/docs/instrumenting/exposition_formats/
Each source is asked in a thread and has a few seconds; what does not answer is left out.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from celery import current_app
from django.conf import settings
from django.db import connection
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from . import activity, brokers, metrics, problems, queues
from .celery.results import FAILED, Results

TIMEOUT = 3  # seconds
FRESH = 1  # seconds for which an answer is given again


def gauge(
    name: str, about: str, values: float | Mapping[Any, float | None], *labels: str
) -> GaugeMetricFamily:
    """Return a gauge with a value for each label or tuple of labels, or with the only one."""
    family = GaugeMetricFamily(f"stack_{name}", about, labels=labels)
    for label, value in (values if isinstance(values, Mapping) else {(): values}).items():
        if value is not None:
            family.add_metric(label if isinstance(label, tuple) else (label,), value)
    return family


def waiting() -> Iterator[Metric]:
    """Return what waits in each queue."""
    with queues.connect() as broker:
        found = queues.waiting(broker)
    waits = {name: about.tasks for name, about in found.items()}
    oldest = {name: about.oldest for name, about in found.items()}
    yield gauge("queue_waiting", "Tasks that wait in a queue.", waits, "queue")
    yield gauge("queue_oldest_seconds", "Age of the oldest of them.", oldest, "queue")


def stranded() -> Iterator[Metric]:
    """Return what waits in queues that are not in QUEUES."""
    with queues.connect() as broker:
        found = queues.stranded(broker)
    yield gauge("stranded_tasks", "Tasks in a queue that has no worker.", found, "queue")


def full() -> Iterator[Metric]:
    """Return whether the broker refuses tasks."""
    yield gauge("broker_full", "Whether the broker accepts no tasks.", brokers.current().is_full())


def memory() -> Iterator[Metric]:
    """Return the memory of a broker that reports it."""
    if found := brokers.current().memory():
        used, limit = found
        yield gauge("broker_memory_bytes", "Memory that the broker uses.", used)
        if limit:
            yield gauge("broker_memory_max_bytes", "Memory that it may use.", limit)


def workers() -> Iterator[Metric]:
    """Return what workers and beat report."""
    found, _ = activity.read(settings.QUEUES)
    running = {name: about.running for name, about in found.items()}
    up = {name: about.up for name, about in found.items()}
    yield gauge("queue_running", "Tasks of a queue that run.", running, "queue")
    yield gauge("queue_workers", "Workers that consume a queue.", up, "queue")
    tick: Any = activity.store().get("activity:beat-tick")
    if tick:
        about = "When beat looked at its schedule last, in seconds since 1970."
        yield gauge("beat_tick_timestamp_seconds", about, float(tick))


def requests() -> Iterator[Metric]:
    """Return what processes have counted in the cache, but tasks."""
    sums = metrics.sums()
    about = "Tasks that a producer could not send."
    yield CounterMetricFamily("stack_tasks_refused", about, sums.get(metrics.name("refused"), 0))
    about = "Requests: seconds until the response began."
    labels = ("view", "status")
    yield histogram("request", "request_seconds", about, sums, metrics.REQUEST_BUCKETS, labels)


def tasks() -> Iterator[Metric]:
    """Return how tasks have ended, from where they are counted."""
    found = brokers.current().task_counts()
    sums = metrics.sums() if found is None else metrics.decoded(found)
    ended = CounterMetricFamily(
        "stack_tasks", "Tasks that have ended.", labels=("queue", "task", "state")
    )
    for _, labels, count in counted("task", sums):
        ended.add_metric(labels, count)
    yield ended
    about = "Run time of tasks."
    yield histogram("task_seconds", "task_seconds", about, sums, metrics.TASK_BUCKETS, ("queue",))


def failed() -> Iterator[Metric]:
    """Return how many tasks wait for somebody to look at their failure."""
    backend = current_app.backend
    if isinstance(backend, Results):
        # Those whose result has expired are not listed any more.
        since = time.time() - backend.expires if backend.expires else 0
        count = backend.client.zcount(FAILED, since, "inf")
        yield gauge("failed_tasks", "Tasks on the list of failed ones.", count)


def database() -> Iterator[Metric]:
    """Return size and connections of the database."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_database_size(datname), numbackends FROM pg_stat_database"
                " WHERE datname = current_database()"
            )
            size, connections = cursor.fetchone()
    finally:
        connection.close()  # back to the pool: nothing else runs in this thread
    yield gauge("database_bytes", "Size of the database.", size)
    yield gauge("database_connections", "Connections to it.", connections)


def problem() -> Iterator[Metric]:
    """Return what is wrong now, as the dashboard says it."""
    found = {(one.problem, one.subject): 1 for one in problems.current()}
    yield gauge("problem", "What is wrong now.", found, "problem", "subject")


def vms() -> Iterator[Metric]:
    """Return what ops/alarm on each VM has reported."""
    found = problems.reports()  # the newest first
    for key, name, about in (
        ("backup", "backup_timestamp_seconds", "When the last backup was made, since 1970."),
        ("certificate", "certificate_expiry_timestamp_seconds", "When the certificate expires."),
    ):
        if known := [report[key] for report in found if report.get(key)]:
            yield gauge(name, about, known[0])
    for key, name, about in (
        ("disk", "vm_disk_used_ratio", "Share of the disk that is used, 0 to 1."),
        ("memory", "vm_memory_used_ratio", "Share of the memory that is used, 0 to 1."),
        ("load", "vm_load1", "Load of the last minute."),
    ):
        yield gauge(name, about, {report["vm"]: report.get(key) for report in found}, "vm")


def counted(kind: str, sums: Mapping[str, int]) -> Iterator[tuple[str, list[str], int]]:
    """Yield the last part of each name of a kind, what is before it or all, and the count."""
    for name, count in sums.items():
        found, *parts = json.loads(name)
        if found == kind:
            yield parts[-1], [str(part) for part in parts], count


def histogram(
    kind: str,
    name: str,
    about: str,
    sums: Mapping[str, int],
    buckets: tuple[float, ...],
    labels: tuple[str, ...],
) -> HistogramMetricFamily:
    """Return a histogram of what is counted by buckets, with its sum in microseconds."""
    found: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for _, parts, count in counted(kind, sums):
        found[tuple(parts[:-1])][parts[-1]] = count
    family = HistogramMetricFamily(f"stack_{name}", about, labels=labels)
    limits = [*map(str, map(float, buckets)), "+Inf"]
    for values, counts in found.items():
        total, rows = 0, []
        for number, limit in enumerate(limits):
            total += counts.get(str(number), 0)
            rows.append((limit, total))
        family.add_metric(values, rows, counts.get("sum", 0) / 1e6)
    return family


class Source:
    """One of the functions above, which never runs twice at the same time."""

    def __init__(self, read: Callable[[], Iterable[Metric]], timeout: float = TIMEOUT) -> None:
        """Take the function, and how many seconds it has."""
        self.read, self.timeout = read, timeout
        self.running: Future[list[Metric] | None] | None = None

    async def ask(self) -> list[Metric] | None:
        """Return what it yields; None when it fails or takes too long."""
        if self.running is None or self.running.done():
            self.running = threads.submit(self.run)
        answer = asyncio.wrap_future(self.running)
        await asyncio.wait([answer], timeout=self.timeout)
        return answer.result() if answer.done() else None

    def run(self) -> list[Metric] | None:
        """Return what it yields; None when it fails."""
        try:
            return list(self.read())
        except Exception:  # whatever it is, it has no figures now
            return None


threads = ThreadPoolExecutor(16, "metrics")
SERVICES = {"broker": Source(waiting), "cache": Source(workers), "db": Source(database)}
OTHERS = [Source(read) for read in (stranded, full, memory, requests, tasks, failed, vms)]
# It waits for what does not answer, and says so then.
OTHERS.append(Source(problem, timeout=2 * TIMEOUT))
latest: tuple[float, bytes] = (-FRESH, b"")


async def page() -> tuple[str, bytes]:
    """Return type and body of the answer; for a second it is the same one."""
    global latest
    if time.monotonic() > latest[0] + FRESH:
        asked = [*SERVICES.values(), *OTHERS]
        answers = await asyncio.gather(*(source.ask() for source in asked))
        up = dict(zip(SERVICES, (float(answer is not None) for answer in answers), strict=False))
        families: list[Metric] = [gauge("up", "Whether a service answers.", up, "service")]
        families += [family for answer in answers for family in answer or ()]
        body = await asyncio.wrap_future(threads.submit(text, families))
        latest = time.monotonic(), body
    return CONTENT_TYPE_PLAIN_0_0_4, latest[1]


class Families(Collector):
    """A collector of what was found just now."""

    def __init__(self, families: list[Metric]) -> None:
        """Take them."""
        self.families = families

    def collect(self) -> list[Metric]:
        """Return them."""
        return self.families


def text(families: list[Metric]) -> bytes:
    """Return them in Prometheus' format."""
    registry = CollectorRegistry()
    registry.register(Families(families))
    return generate_latest(registry)
