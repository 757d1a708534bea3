"""Health of this process, and of what it needs."""

import asyncio
from collections.abc import Callable

from asgiref.sync import sync_to_async
from django.core.cache import cache
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse

from config.celery import app

TIMEOUT = 3  # seconds


async def healthz(request: HttpRequest) -> HttpResponse:
    """Say that this process is alive; asks nobody else."""
    return HttpResponse("ok", content_type="text/plain")


async def readyz(request: HttpRequest) -> JsonResponse:
    """Say for the database, the broker and the cache "ok" or "down"; 503 when one is down."""
    parts = {"database": ask_database, "broker": ask_broker, "cache": ask_cache}
    states = dict(zip(parts, await asyncio.gather(*map(state, parts.values())), strict=True))
    return JsonResponse(states, status=200 if set(states.values()) == {"ok"} else 503)


async def state(ask: Callable[[], object]) -> str:
    """Call `ask` in a thread of its own; "ok", or "down" when it fails or takes too long."""
    try:
        async with asyncio.timeout(TIMEOUT):
            await sync_to_async(ask, thread_sensitive=False)()
    except Exception:  # whatever it is, the part cannot be used
        return "down"
    return "ok"


def ask_database() -> None:
    """Raise when the database does not answer."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        connection.close()  # back to the pool: nothing else runs in this thread


def ask_broker() -> None:
    """Raise when the broker does not answer."""
    with app.connection_for_write() as broker:
        broker.ensure_connection(max_retries=1, timeout=TIMEOUT)


def ask_cache() -> None:
    """Raise when the cache does not answer."""
    cache.get("readyz")
