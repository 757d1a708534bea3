"""
Health checks of this process and of what it needs, and /metrics, answered before Django.

No middleware, no ATOMIC_REQUESTS and no log-in of the project can stand in their way.
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from asgiref.sync import sync_to_async
from celery import current_app
from django.conf import settings
from django.core.cache import cache
from django.db import connection

from stack import brokers, exposition

TIMEOUT = 3  # seconds

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class FullError(Exception):
    """The service answers, and has no room."""


class HealthChecks:
    """An ASGI application that answers /healthz, /readyz and /metrics and passes the rest to another one."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.pages = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: https://asgi.readthedocs.io/en/latest/specs/www.html"""
        page = self.pages.get(scope["path"]) if scope["type"] == "http" else None
        if page is None:
            return await self.application(scope, receive, send)
        status, content_type, body = await page(scope)
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
    parts = {"database": check_database, "broker": check_broker, "cache": check_cache}
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


def check_database() -> None:
    """Raise when the database does not answer."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        connection.close()  # back to the pool: nothing else runs in this thread


def check_broker() -> None:
    """Raise when the broker does not answer, FullError when it accepts no tasks."""
    with current_app.connection_for_write() as broker:
        broker.ensure_connection(max_retries=1, timeout=TIMEOUT)
    if brokers.current().is_full():
        raise FullError


def check_cache() -> None:
    """Raise when the cache does not answer."""
    cache.get("readyz")
