import asyncio
import json
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.urls import path

from stack.health import Application, HealthChecks


async def django(*arguments: object) -> None:
    """Fail: no health check may reach the project's own code."""
    raise AssertionError("Django was asked.")


def get(path: str, application: Application = django) -> tuple[int, bytes]:
    """Return status and body of a page."""

    async def ask() -> tuple[int, bytes]:
        headers = [(b"host", b"localhost")]
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "headers": headers}
        client = ApplicationCommunicator(HealthChecks(application), scope)
        await client.send_input({"type": "http.request"})
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


LOG_IN_REQUIRED = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("middleware", "status"), [(LOG_IN_REQUIRED, 302), ([], 500)], ids=["log-in required", "atomic"]
)
def test_no_middleware_and_no_atomic_requests_stand_before_them(
    settings, monkeypatch: pytest.MonkeyPatch, middleware: list[str], status: int
) -> None:
    def page(request: HttpRequest) -> HttpResponse:
        return HttpResponse("a page")

    settings.SECURE_SSL_REDIRECT = False
    settings.LOGIN_URL = "/enter/"
    settings.MIDDLEWARE = middleware
    settings.ROOT_URLCONF = (path("page", page),)
    nowhere = {"ATOMIC_REQUESTS": True, "HOST": "127.0.0.1", "PORT": "1"}
    for name, value in nowhere.items():
        monkeypatch.setitem(connection.settings_dict, name, value)
    connection.close()
    project = get_asgi_application()
    assert get("/page", project)[0] == status
    assert get("/healthz", project) == (200, b"ok")
    answer = get("/readyz", project)
    assert (answer[0], json.loads(answer[1])["database"]) == (503, "down")


def test_all_other_pages_are_the_projects() -> None:
    scope: dict[str, Any] = {"type": "http", "path": "/healthz/"}
    client: Any = None  # not needed so far
    with pytest.raises(AssertionError, match="Django was asked"):
        asyncio.run(HealthChecks(django)(scope, client, client))
