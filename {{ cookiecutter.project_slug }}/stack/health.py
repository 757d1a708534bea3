"""
Health checks of this process and of what it needs, /metrics and /vm, answered before Django.

No middleware, no ATOMIC_REQUESTS and no log-in of the project can stand in their way.
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from asgiref.sync import sync_to_async
from celery import current_app
from django.conf import settings
from django.core.cache import cache

from stack import brokers, exposition, problems

TIMEOUT = 3  # seconds
MAX_BODY = 64 * 1024  # bytes of a report

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class FullError(Exception):
    """The service answers, and has no room."""


class HealthChecks:
    """An ASGI application that answers the pages below and passes the rest to another one."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.pages = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: https://asgi.readthedocs.io/en/latest/specs/www.html"""
        page = self.pages.get(scope["path"]) if scope["type"] == "http" else None
        if page is None and not is_report(scope):
            return await self.application(scope, receive, send)
        status, content_type, body = await (page(scope) if page else vm(scope, receive))
        headers = {
            "content-type": content_type,
            "content-length": str(len(body)),
            "cache-control": "no-store",
        }
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        # The server drops the body of an answer to HEAD.
        await send({"type": "http.response.body", "body": body})


async def healthz(scope: Scope) -> tuple[int, str, bytes]:
    """Return 200: this process is alive. Nothing else is asked."""
    return 200, "text/plain", b"ok"


async def readyz(scope: Scope) -> tuple[int, str, bytes]:
    """
    Return "ok" or "down" for the database, the broker and the cache; 503 unless all are "ok".

    The broker may also be "full": it accepts no tasks.
    """
    parts = {"database": problems.check_database, "broker": check_broker, "cache": check_cache}
    states = dict(zip(parts, await asyncio.gather(*map(state, parts.values())), strict=True))
    status = 200 if set(states.values()) == {"ok"} else 503
    return status, "application/json", json.dumps(states).encode()


async def metrics(scope: Scope) -> tuple[int, str, bytes]:
    """
    Return the metrics; a request by the proxy needs METRICS_TOKEN.

    The proxy sets X-Forwarded-For in every request, whatever a client sends; inside nobody else does.
    """
    headers = dict(scope["headers"])
    if b"x-forwarded-for" in headers:
        if not settings.METRICS_TOKEN:
            return 404, "text/plain", b"Not found"
        expected = f"Bearer {settings.METRICS_TOKEN}".encode()
        if not hmac.compare_digest(headers.get(b"authorization", b""), expected):
            return 403, "text/plain", b"Forbidden"
    return 200, *await exposition.page()


def is_report(scope: Scope) -> bool:
    """Return whether a request is for /vm, from inside: through the proxy this path is the project's."""
    if scope["type"] != "http" or scope["path"] != "/vm":
        return False
    return all(name.lower() != b"x-forwarded-for" for name, _ in scope["headers"])


async def vm(scope: Scope, receive: Receive) -> tuple[int, str, bytes]:
    """Store what ops/alarm reports of its VM; return the problems that are seen from here."""
    if scope["method"] != "POST":
        return 405, "text/plain", b"POST a report.\n"
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            return 413, "text/plain", b"The report is too large.\n"
    try:
        report = problems.parse(body)
    except ValueError as error:
        return 400, "text/plain", f"{error}\n".encode()
    found = await sync_to_async(problems.exchange, thread_sensitive=False)(report)
    answer = {"problems": [asdict(problem) for problem in found]}
    return 200, "application/json", json.dumps(answer).encode()


async def state(check: Callable[[], object]) -> str:
    """Call `check` in a thread of its own; return "ok", "full", or "down" when it fails or takes too long."""
    try:
        async with asyncio.timeout(TIMEOUT):
            await sync_to_async(check, thread_sensitive=False)()
    except FullError:
        return "full"
    except Exception:  # whatever it is, the part cannot be used
        return "down"
    return "ok"


def check_broker() -> None:
    """Raise when the broker does not answer, FullError when it accepts no tasks."""
    with current_app.connection_for_write() as broker:
        broker.ensure_connection(max_retries=1, timeout=TIMEOUT)
    if brokers.current().is_full():
        raise FullError


def check_cache() -> None:
    """Raise when the cache does not answer."""
    cache.get("readyz")
