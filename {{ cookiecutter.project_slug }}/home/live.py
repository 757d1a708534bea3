"""
What the start page shows, as a stream: https://html.spec.whatwg.org/multipage/server-sent-events.html

One look a second serves all who listen to this process, and there is none while nobody listens.
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

from django.conf import settings

from core import pulse, queues
from core.views import ask_database

logger = logging.getLogger(__name__)

PAUSE = 1  # seconds between two looks
PATIENCE = 3  # seconds after which what does not answer is down
MAX_LISTENERS = 50  # in this process; each holds a thread and a connection of the proxy
# Seconds that a stream lasts: the browser then opens another, so that who logged out sees no more
# and a proxy that stops (stop_grace_period in compose.yaml) has not long to wait.
LIFE = 30
FULL = f"""retry: 30000
event: full
data: {MAX_LISTENERS} pages are open already. This one tries again every 30 seconds.

"""

# Who answers on these pages is up. On a laptop there is one web.
PAGES = {
    "proxy": (8080, "/proxy-alive"),
    "web-a": (8000, "/healthz"),
    "web-b": (8000, "/healthz"),
    "flower": (5555, "/flower/healthcheck"),
}
if settings.DEBUG:
    del PAGES["web-b"]
SERVICES = [*PAGES, "beat", "broker", "cache", "db"]


def ask_page(host: str, port: int, path: str) -> None:
    """Raise unless the page answers 200."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request("GET", path, headers={"Host": "localhost"})
        status = connection.getresponse().status
        if status != 200:
            raise http.client.HTTPException(f"{host} answered {status}")
    finally:
        connection.close()


class Probe:
    """Something that is asked again and again, in a thread, and never twice at the same time."""

    def __init__(self, name: str, ask: Callable[[], object], pause: float = 0) -> None:
        """Call `ask`, which raises when the part is down, with `pause` seconds between."""
        self.name, self.ask, self.pause = name, ask, pause
        self.asked = -pause
        self.asking: asyncio.Future | None = None
        self.up: bool | None = None  # None: not known yet
        self.answer: Any = None

    def start(self, threads: ThreadPoolExecutor) -> asyncio.Future | None:
        """Ask when it is time; return what to wait for, if anything."""
        if self.asking is None and time.monotonic() >= self.asked + self.pause:
            self.asked = time.monotonic()
            self.asking = asyncio.get_running_loop().run_in_executor(threads, self.ask)
        return self.asking

    def look(self) -> None:
        """Take the answer if there is one; who has not answered for long is down."""
        if self.asking and self.asking.done():
            error = self.asking.exception()
            if error and self.up is not False:
                logger.warning("%s is down: %r", self.name, error)
            self.up = error is None
            self.answer = self.asking.result() if self.up else None
            self.asking = None
        elif self.asking and time.monotonic() > self.asked + PATIENCE:
            self.up, self.answer = False, None


class Live:
    """The looks, and those who listen."""

    def __init__(self) -> None:
        self.listeners = self.looks = 0
        self.latest: str | None = None
        self.looking: asyncio.Task | None = None
        self.news: asyncio.Future[str | None]

    async def listen(self) -> AsyncIterator[str]:
        """Give an event after each look, for LIFE seconds or until this server stops."""
        if self.listeners >= MAX_LISTENERS:
            yield FULL
            return
        self.listeners += 1
        try:
            if self.looking is None:
                self.news = asyncio.get_running_loop().create_future()
                self.looking = asyncio.create_task(self.look())
            yield "retry: 500\n\n"  # milliseconds until the browser comes back
            if self.latest:
                yield self.latest
            end = time.monotonic() + LIFE
            while time.monotonic() < end and (text := await asyncio.shield(self.news)):
                yield text
        finally:
            self.listeners -= 1

    async def look(self) -> None:
        """Look and tell all, as long as somebody listens."""
        connection = queues.connect()
        threads = ThreadPoolExecutor(thread_name_prefix="look")
        probes = [
            Probe("broker", partial(queues.waiting, connection)),
            Probe("cache", partial(pulse.read, settings.QUEUES)),
            Probe("db", ask_database, pause=5),
            *(Probe(host, partial(ask_page, host, *page), pause=5) for host, page in PAGES.items()),
        ]
        try:
            while self.listeners and not stopping():
                asking = [probe.start(threads) for probe in probes]
                await asyncio.wait([*filter(None, asking)], timeout=PAUSE / 2)
                for probe in probes:
                    probe.look()
                self.looks += 1
                news, self.news = self.news, asyncio.get_running_loop().create_future()
                self.latest = (
                    f": {self.listeners} listening\n"
                    f"id: {self.looks}\ndata: {json.dumps(message(probes))}\n\n"
                )
                news.set_result(self.latest)
                await asyncio.sleep(PAUSE)
        finally:
            self.looking = self.latest = None
            self.news.set_result(None)
            threads.submit(connection.release)
            threads.shutdown(wait=False)


def message(probes: list[Probe]) -> dict[str, object]:
    """Say what the page shows: the state of each service, the figures of each queue."""
    answers = {probe.name: probe.answer for probe in probes}
    waiting: dict[str, queues.Waiting] = answers["broker"] or {}
    told: Any = answers["cache"] or ({}, None)
    workers, beat = told
    up = {probe.name: probe.up for probe in probes} | {"beat": beat}
    return {
        "services": {name: up[name] for name in SERVICES},
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
    Tell whether uvicorn no longer takes connections: it waits for all streams before it ends.

    Its own message to the application, ASGI's lifespan.shutdown, comes after that.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return not all(listening.is_serving() for listening in getattr(server, "servers", []))


live = Live()
