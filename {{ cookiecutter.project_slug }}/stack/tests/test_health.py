import asyncio
import json
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator

from stack.health import HealthChecks


async def django(*arguments: object) -> None:
    """Fail: no health check may reach the project's own code."""
    raise AssertionError("Django was asked.")


def get(path: str) -> tuple[int, bytes]:
    """Return status and body of a page."""

    async def ask() -> tuple[int, bytes]:
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path}
        client = ApplicationCommunicator(HealthChecks(django), scope)
        start = await client.receive_output(timeout=30)
        body = await client.receive_output(timeout=30)
        return start["status"], body["body"]

    return asyncio.run(ask())


def test_healthz_depends_on_nothing() -> None:
    assert get("/healthz") == (200, b"ok")


@pytest.mark.django_db(transaction=True)
def test_readyz_names_each_part() -> None:
    status, body = get("/readyz")
    assert json.loads(body) == {"database": "ok", "broker": "ok", "cache": "ok"}
    assert status == 200


@pytest.mark.django_db(transaction=True)
def test_readyz_names_the_dead_part(settings) -> None:
    settings.CACHES = {
        "default": {**settings.CACHES["default"], "LOCATION": "redis://localhost:1/0"}
    }
    status, body = get("/readyz")
    assert json.loads(body)["cache"] == "down"
    assert status == 503


def test_all_other_pages_are_the_projects() -> None:
    scope: dict[str, Any] = {"type": "http", "path": "/healthz/"}
    client: Any = None  # not needed so far
    with pytest.raises(AssertionError, match="Django was asked"):
        asyncio.run(HealthChecks(django)(scope, client, client))
