"""Each queue pings its check at PING_URL, through beat's schedule and its worker."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from celery import current_app
from django.conf import settings
from django.core.cache import cache

from stack import pings
from stack.celery import defaults
from stack.tasks import ping
from stack.testing import wait_for

KEY = "the-ping-key"
SHOW = """
import os
from celery.app.utils import find_app
print(*find_app(os.environ["CELERY_APP"]).conf.beat_schedule)
"""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that a receiver of pings gets, at PING_URL."""
    paths: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Print nothing."""

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever).start()
    monkeypatch.setenv("PING_URL", f"http://127.0.0.1:{server.server_port}/{KEY}/")
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "shop")
    cache.clear()
    yield paths
    server.shutdown()
    server.server_close()


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PING_URL where nothing answers."""
    monkeypatch.setenv("PING_URL", f"http://127.0.0.1:1/{KEY}")
    monkeypatch.setattr(pings, "failed", False)
    cache.clear()


def test_beat_sends_one_to_each_queue_whatever_else_its_schedule_has(receiver) -> None:
    class Source:
        broker_transport_options: dict[str, object] = {}
        task_routes = None
        beat_schedule = {"own": {}, "stack-ping-default": {"task": "mine"}}

    defaults.complete(Source)
    names = {f"stack-ping-{queue}" for queue in settings.QUEUES}
    assert Source.beat_schedule.keys() == {"own", *names}
    assert Source.beat_schedule["stack-ping-default"] == {"task": "mine"}
    assert KEY not in str(pings.schedule())


def test_they_are_in_the_schedule_that_each_scheduler_of_beat_reads() -> None:
    def names(url: str) -> set[str]:
        env = os.environ | {"PING_URL": url}
        command = [sys.executable, "-c", SHOW]
        return set(subprocess.check_output(command, env=env, text=True).split())

    pinged = {f"stack-ping-{queue}" for queue in settings.QUEUES}
    assert names("http://localhost/key") - names("") == pinged
    assert names("") - pinged == names("") == {*settings.CELERY_BEAT_SCHEDULE}


def test_without_a_url_there_is_nothing(monkeypatch: pytest.MonkeyPatch, worker) -> None:
    monkeypatch.delenv("PING_URL", raising=False)
    assert pings.schedule() == {}
    pings.send("default", None)


@pytest.mark.django_db
def test_each_queue_requests_its_own_check(receiver: list[str], worker) -> None:
    for entry in pings.schedule().values():
        current_app.send_task(entry["task"], **entry["options"])
    expected = {f"/{KEY}/shop-{queue}?create=1" for queue in settings.QUEUES}
    wait_for(lambda: {*receiver} == expected)


def test_those_that_have_piled_up_are_one(receiver: list[str]) -> None:
    for _ in range(5):
        pings.send("default", None)
    assert len(receiver) == 1


def test_a_project_without_a_name_in_env_has_that_of_its_workers(
    receiver: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMPOSE_PROJECT_NAME")
    pings.send("default", "default@books")
    assert receiver == [f"/{KEY}/books-default?create=1"]


def test_a_name_is_one_that_the_service_accepts(receiver: list[str]) -> None:
    pings.send("Über.mail", None)
    assert receiver == [f"/{KEY}/shop--ber-mail?create=1"]


def test_a_ping_that_fails_is_logged_once_without_the_url(
    unreachable, caplog: pytest.LogCaptureFixture
) -> None:
    for queue in ("a", "b", "c"):
        pings.send(queue, None)
    (record,) = caplog.records
    assert "Connection refused" in record.getMessage()
    assert KEY not in caplog.text
    assert record.exc_info is None


@pytest.mark.django_db
@pytest.mark.parametrize(
    "url", [f"nonsense {KEY}", f"ftp//{KEY}", f"http://[{KEY}", f"http://a b/{KEY}"]
)
def test_no_failure_is_a_failed_task_or_shows_the_url(
    unreachable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    monkeypatch.setenv("PING_URL", url)
    assert ping.apply().state == "SUCCESS"
    assert "PING_URL cannot be reached" in caplog.text
    assert KEY not in caplog.text


def test_it_goes_ahead_where_the_broker_can(monkeypatch: pytest.MonkeyPatch, receiver) -> None:
    monkeypatch.setattr(settings, "CELERY_BROKER_URL", "amqp://broker")
    assert {entry["options"]["priority"] for entry in pings.schedule().values()} == {9}
