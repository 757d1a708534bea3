import re
from typing import Any

import pytest
from celery import current_app
from celery.backends.base import DisabledBackend
from celery.schedules import crontab
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import include, path

from stack import activity, failed
from stack.dashboard import runbook
from stack.dashboard.live import PAGES, Probe, failures, message
from stack.dashboard.views import when
from stack.tasks import sample
from stack.testing import wait_for

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_page_shows_every_queue(client: Client, settings) -> None:
    settings.DEBUG = True
    page = client.get("/status/").content.decode()
    assert all(f'value="{queue}"' in page for queue in settings.QUEUES)


@pytest.mark.parametrize(
    "path", ["/status/", "/status/live/", "/status/sample/00000000-0000-0000-0000-000000000000/"]
)
def test_in_production_visitors_are_sent_to_the_log_in(client: Client, path: str) -> None:
    assert client.get(path).headers["Location"].startswith("/admin/login/")


def test_in_production_staff_sees_the_page(admin_client: Client) -> None:
    assert admin_client.get("/status/").status_code == 200


def test_the_proxy_hears_who_may_see_the_monitoring(
    client: Client, admin_client: Client, settings
) -> None:
    path = "/status/monitoring/allowed/"
    assert (client.get(path).status_code, admin_client.get(path).status_code) == (401, 204)
    assert (
        client.get("/status/monitoring/").headers["Location"]
        == "/admin/login/?next=/status/monitoring/"
    )
    assert admin_client.get("/status/monitoring/").headers["Location"] == "/monitoring/"
    settings.DEBUG = True
    assert client.get(path).status_code == 204


def test_without_an_admin_its_log_in_is_that_of_the_project(client: Client, settings) -> None:
    settings.ROOT_URLCONF = (path("status/", include("stack.dashboard.urls")),)
    assert client.get("/status/").status_code == 403
    settings.LOGIN_URL = "/enter/"
    assert client.get("/status/").headers["Location"] == "/enter/?next=/status/"
    settings.DEBUG = True
    page = client.get("/status/").content.decode()
    assert ("Flower" in page, "Admin" in page) == (True, False)


def test_an_unknown_queue_is_refused(admin_client: Client) -> None:
    answer = admin_client.post("/status/sample/", {"queue": "unread"})
    assert (answer.status_code, answer.json()) == (400, {"error": "There is no such queue."})


def test_a_sample_task_fails_when_asked_to(admin_client: Client, worker) -> None:
    sent = admin_client.post("/status/sample/", {"queue": "default", "fail": ""}).json()
    current_app.AsyncResult(sent["id"]).get(timeout=120, propagate=False)
    task = admin_client.get(f"/status/sample/{sent['id']}/").json()
    assert (task["state"], task["error"]) == ("FAILURE", "This task was sent to fail.")


def test_a_sample_task_runs_to_its_end(client: Client, worker, settings) -> None:
    settings.DEBUG = True
    sent = client.post("/status/sample/", {"queue": "default"})
    current_app.AsyncResult(sent.json()["id"]).get(timeout=120)
    task = client.get(f"/status/sample/{sent.json()['id']}/").json()
    assert (task["state"], task["progress"]) == ("SUCCESS", 1)
    assert task["result"].startswith("Done by ")


@pytest.mark.parametrize("path", ["/status/sample/", "/status/retry/", "/status/run/"])
def test_in_production_visitors_can_send_nothing(client: Client, path: str) -> None:
    assert client.post(path).headers["Location"].startswith("/admin/login/")


def failed_sample() -> str:
    """Run a task that fails; return its id."""
    result = sample.apply_async(kwargs={"steps": 2, "pause": 0, "fail": True})
    result.get(timeout=120, propagate=False)
    return result.id


def test_a_failed_task_is_shown_counted_and_sent_again(admin_client: Client, worker) -> None:
    task = failed_sample()
    first = (failures(current_app.backend) or [])[0]
    assert (first["id"], first["task"], first["queue"]) == (task, sample.name, "default")
    assert (first["error"], first["why_not"]) == ("SampleError: This task was sent to fail.", "")
    workers, _ = activity.read(["default"])
    assert workers["default"].failed[-1] >= 1

    answer = admin_client.post("/status/retry/", {"id": task})
    assert (answer.status_code, answer.json()) == (202, {"id": task, "follow": False})

    def failed_again() -> bool:
        found = {row["id"]: row["at"] for row in failures(current_app.backend) or []}
        return found.get(task, first["at"]) != first["at"]

    wait_for(failed_again)


def test_what_cannot_be_sent_again_is_refused(admin_client: Client) -> None:
    answer = admin_client.post("/status/retry/", {"id": "00000000-0000-0000-0000-000000000000"})
    error = "This task is not a failed one any more."
    assert (answer.status_code, answer.json()) == (409, {"error": error})


def test_an_entry_of_the_schedule_is_sent_now(admin_client: Client, worker, monkeypatch) -> None:
    entry = {"task": sample.name, "schedule": 60, "kwargs": {"steps": 1, "pause": 0}}
    monkeypatch.setitem(current_app.conf.beat_schedule, "often", entry)
    page = admin_client.get("/status/").content.decode()
    assert "stack.tasks.sample, every 1\xa0minute" in page
    sent = admin_client.post("/status/run/", {"name": "often"})
    assert (sent.status_code, sent.json()["follow"]) == (202, True)
    result = current_app.AsyncResult(sent.json()["id"]).get(timeout=120)
    assert result.startswith("Done by ")
    assert admin_client.post("/status/run/", {"name": "never"}).status_code == 404


@pytest.fixture
def no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that keeps no results."""
    app: Any = current_app
    app = app._get_current_object()
    monkeypatch.setattr(app, "_backend_cache", DisabledBackend(app=app))


def test_without_results_the_page_says_what_it_cannot_know(
    no_results: None, admin_client: Client, worker
) -> None:
    assert failures(current_app.backend) is None
    assert failed.ONLY_REDIS in admin_client.get("/status/").content.decode()
    answer = admin_client.post("/status/retry/", {"id": "00000000-0000-0000-0000-000000000000"})
    assert (answer.status_code, answer.json()) == (409, {"error": failed.ONLY_REDIS})
    sent = admin_client.post("/status/sample/", {"queue": "default"}).json()
    assert (sent["follow"], sent["why_not"][:20]) == (False, "No results are kept:")


def test_without_results_the_commands_say_so(no_results: None, worker, capsys) -> None:
    with pytest.raises(CommandError, match=failed.ONLY_REDIS):
        call_command("failed")
    call_command("inspect_task", "00000000-0000-0000-0000-000000000000")
    assert "No results are kept:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("up", "full", "shown"),
    [(True, False, True), (True, True, "full"), (True, None, True), (False, True, False)],
)
def test_a_full_broker_is_neither_up_nor_down(up: bool, full: bool | None, shown: object) -> None:
    names = [
        "broker",
        "full",
        "aside",
        "failures",
        "cache",
        "db",
        "reports",
        "recent",
        "alerts",
        *PAGES,
    ]
    probes = {name: Probe(name, list) for name in names}
    probes["broker"].up, probes["full"].answer = up, full
    services: Any = message(list(probes.values()))["services"]
    assert services["broker"] == shown


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (30, "every 30 seconds"),
        (5400, "every 1\xa0hour, 30\xa0minutes"),
        (crontab(hour=4, minute=30), "30 4 * * *"),
    ],
)
def test_a_schedule_is_shown_in_words(schedule: object, words: str) -> None:
    assert when(schedule) == words


def test_the_runbook_is_for_staff(client: Client) -> None:
    assert client.get("/status/runbook/").headers["Location"].startswith("/admin/login/")


def test_the_runbook_has_an_anchor_for_each_section(admin_client: Client) -> None:
    page = admin_client.get("/status/runbook/").content.decode()
    text = runbook.FILE.read_text(encoding="utf-8")
    assert re.findall('<h2 id="(.+?)">', page) == re.findall("^## (.+)$", text, re.MULTILINE)
    assert page.count("<pre>") == text.count("```sh\n") > 10
    assert "<code>QUEUES</code>" in page
    assert not re.search(r"```|\]\(|\*\*", page)


def test_without_the_file_the_page_says_so(admin_client: Client, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(runbook, "FILE", tmp_path / "runbook.md")
    page = admin_client.get("/status/runbook/").content.decode()
    assert "This project has no docs/runbook.md." in page
