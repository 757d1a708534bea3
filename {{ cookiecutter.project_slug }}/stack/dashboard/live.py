"""
What the dashboard shows, as server-sent events.

One check per second serves all pages that are connected to this process; without any there is none.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import http.client
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

from celery import current_app
from django.conf import settings

from stack import failed, problems, queues
from stack.celery.results import Results

logger = logging.getLogger(__name__)

PAUSE = 1  # seconds between two checks
PAUSES = {
    "broker": 0,
    "cache": 0,
    "failures": 2,
}  # seconds between two checks of one thing; others 5
FAILURES = 10  # how many are shown
MAX_LISTENERS = 50  # in this process; each holds a thread and a connection of the proxy
# Seconds that a stream lasts. The browser then opens another, so that a log-out takes effect, and a
# proxy that stops need not wait for long (stop_grace_period in compose.yaml).
LIFE = 30
FULL = f"""retry: 30000
event: full
data: {MAX_LISTENERS} pages are open already. This one tries again every 30 seconds.

"""

# A service that answers on its page is up. In development there is one web instance.
PAGES = {
    "proxy": (8080, "/proxy-alive"),
    "web-a": (8000, "/healthz"),
    "web-b": (8000, "/healthz"),
    "flower": (5555, "/flower/healthcheck"),
}
if settings.DEBUG:
    del PAGES["web-b"]
SERVICES = [*PAGES, "beat", "broker", "cache", "db"]


def check_page(host: str, port: int, path: str) -> None:
    """Raise unless the page answers 200."""
    connection = http.client.HTTPConnection(host, port, timeout=problems.TIMEOUT)
    try:
        connection.request("GET", path, headers={"Host": "localhost"})
        status = connection.getresponse().status
        if status != 200:
            raise http.client.HTTPException(f"{host} answered {status}")
    finally:
        connection.close()


def failures(backend: object) -> list[dict[str, object]] | None:
    """Return the last tasks that failed, the newest first; None when only Redis would know them."""
    if not isinstance(backend, Results):
        return None
    return [
        {
            "id": task_id,
            "task": meta["name"],
            "queue": meta["queue"],
            "at": meta["date_done"],
            "error": f"{type(meta['result']).__name__}: {meta['result']}"[:300],
            "not_run": [name for _, name in failed.not_run(meta)],
            "why_not": failed.why_not(task_id, meta),
        }
        for task_id, meta in backend.failed(FAILURES).items()
    ]


class Probe:
    """A check of one service that is repeated, in a thread, and never runs twice at the same time."""

    def __init__(self, name: str, check: Callable[[], object], pause: float = 0) -> None:
        """Call `check`, which raises when the service is down, with `pause` seconds between."""
        self.name, self.check, self.pause = name, check, pause
        self.started = -pause
        self.running: asyncio.Future | None = None
        self.up: bool | None = None  # None: not known yet
        self.answer: Any = None

    def start(self, threads: ThreadPoolExecutor) -> asyncio.Future | None:
        """Start the check when it is due; return what to wait for, if anything."""
        if self.running is None and time.monotonic() >= self.started + self.pause:
            self.started = time.monotonic()
            self.running = asyncio.get_running_loop().run_in_executor(threads, self.check)
        return self.running

    def update(self) -> None:
        """Store the answer if there is one; without one for some seconds the service is down."""
        if self.running and self.running.done():
            error = self.running.exception()
            if error and self.up is not False:
                logger.warning("%s is down: %r", self.name, error)
            self.up = error is None
            self.answer = self.running.result() if self.up else None
            self.running = None
        elif self.running and time.monotonic() > self.started + problems.TIMEOUT:
            self.up, self.answer = False, None


class Live:
    """The repeated check, and the streams that send its outcome."""

    def __init__(self) -> None:
        self.listeners = self.checks = 0
        self.latest: str | None = None
        self.checking: asyncio.Task | None = None
        self.next: asyncio.Future[str | None]

    async def listen(self) -> AsyncIterator[str]:
        """Yield an event after each check, for LIFE seconds or until this server stops."""
        if self.listeners >= MAX_LISTENERS:
            yield FULL
            return
        self.listeners += 1
        try:
            if self.checking is None:
                self.next = asyncio.get_running_loop().create_future()
                self.checking = asyncio.create_task(self.check())
            yield "retry: 500\n\n"  # milliseconds until the browser comes back
            if self.latest:
                yield self.latest
            end = time.monotonic() + LIFE
            while time.monotonic() < end and (text := await asyncio.shield(self.next)):
                yield text
        finally:
            self.listeners -= 1

    async def check(self) -> None:
        """Check all services and send the outcome to the streams, as long as there is one."""
        connection, other = queues.connect(), queues.connect()  # one for each thread
        threads = ThreadPoolExecutor(thread_name_prefix="dashboard")
        checks = problems.checks(connection, other)
        checks["failures"] = partial(failures, current_app.backend)
        checks |= {host: partial(check_page, host, *page) for host, page in PAGES.items()}
        probes = [Probe(name, check, PAUSES.get(name, 5)) for name, check in checks.items()]
        try:
            while self.listeners and not stopping():
                running = [probe.start(threads) for probe in probes]
                await asyncio.wait([*filter(None, running)], timeout=PAUSE / 2)
                for probe in probes:
                    probe.update()
                self.checks += 1
                done, self.next = self.next, asyncio.get_running_loop().create_future()
                self.latest = (
                    f": {self.listeners} listening\n"
                    f"id: {self.checks}\ndata: {json.dumps(message(probes))}\n\n"
                )
                done.set_result(self.latest)
                await asyncio.sleep(PAUSE)
        finally:
            self.checking = self.latest = None
            self.next.set_result(None)
            threads.submit(connection.release)
            threads.submit(other.release)
            threads.shutdown(wait=False)


def message(probes: list[Probe]) -> dict[str, object]:
    """Return what the page shows: what is wrong, the state of each service, the figures of each queue."""
    answers = {probe.name: probe.answer for probe in probes}
    down = {probe.name for probe in probes if probe.up is False}
    reports = answers["reports"] or []
    wrong = problems.find(down, answers) + problems.reported(reports)
    waiting: dict[str, queues.Waiting] = answers["broker"] or {}
    reported: Any = answers["cache"] or ({}, None)
    workers, beat = reported
    up: dict[str, object] = {probe.name: probe.up for probe in probes} | {"beat": beat}
    if up["broker"] and answers["full"]:
        up["broker"] = "full"
    return {
        "services": {name: up[name] for name in SERVICES},
        "problems": [asdict(problem) for problem in wrong],
        "vms": [
            {name: report[name] for name in ("vm", "backup", "certificate")} for report in reports
        ],
        "failures": answers["failures"],
        "queues": {
            name: {
                "waiting": asdict(waiting[name]) if name in waiting else None,
                "workers": asdict(workers[name]) if name in workers else None,
            }
            for name in settings.QUEUES
        },
    }


def stopping() -> bool:
    """
    Return whether uvicorn no longer accepts connections: it waits for all streams before it ends.

    Its own message to the application, ASGI's lifespan.shutdown, comes after that.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return not all(listening.is_serving() for listening in getattr(server, "servers", []))


live = Live()
