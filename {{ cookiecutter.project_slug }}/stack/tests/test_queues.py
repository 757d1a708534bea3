from pathlib import Path

import pytest
from celery import current_app
from celery.app.routes import Router, prepare
from celery.app.task import Context
from celery.exceptions import QueueNotFound
from django.conf import settings
from django.core.management import call_command

from stack.checks import (
    queues_have_workers,
    scheduled_tasks_exist,
    tasks_have_queues,
    worker_queues,
)
from stack.tasks import sample


def test_queues_and_workers_are_the_same() -> None:
    assert worker_queues() == set(settings.QUEUES)
    assert queues_have_workers() == []


def test_a_queue_without_a_worker_is_an_error(settings) -> None:
    settings.QUEUES = [*settings.QUEUES, "unread"]
    assert [error.id for error in queues_have_workers()] == ["stack.E001"]


def test_a_worker_without_a_queue_is_an_error(settings) -> None:
    *settings.QUEUES, missing = settings.QUEUES
    (error,) = queues_have_workers()
    assert (error.id, missing in error.msg) == ("stack.E002", True)


@pytest.mark.parametrize(
    "lines",
    [
        "environment: {CELERY_WORKER_QUEUES: a, CELERY_WORKER_HOSTNAME: a@shop}",
        'environment:\n  CELERY_WORKER_QUEUES: "a"',
        "environment:\n  - CELERY_WORKER_QUEUES=a",
        'command: [celery, worker, "-Q", a]',
        "command: celery worker -Q a",
        "# CELERY_WORKER_QUEUES: b\nenvironment: {CELERY_WORKER_QUEUES: a}",
    ],
)
def test_each_way_to_give_a_worker_its_queues_is_read(
    settings, monkeypatch, tmp_path: Path, lines: str
) -> None:
    settings.BASE_DIR = tmp_path
    monkeypatch.setenv("COMPOSE_FILE", "compose.yaml:mine.yaml")
    (tmp_path / "compose.yaml").write_text("-Q b,c")
    (tmp_path / "mine.yaml").write_text(lines)
    assert worker_queues() == {"a", "b", "c"}


def test_a_route_to_an_unknown_queue_is_an_error(monkeypatch) -> None:
    router = Router(
        prepare([{"stack.*": "unread"}]),
        current_app.amqp.queues,
        create_missing=False,
        app=current_app,
    )
    monkeypatch.setattr(current_app.amqp, "router", router)
    found = {error.id for error in tasks_have_queues()}
    assert found == {"stack.E003"}


def test_a_schedule_with_an_unknown_task_is_an_error(monkeypatch) -> None:
    assert scheduled_tasks_exist() == []
    monkeypatch.setitem(
        current_app.conf.beat_schedule, "typo", {"task": "no.such.task", "schedule": 60}
    )
    (error,) = scheduled_tasks_exist()
    assert (error.id, "no.such.task" in error.msg) == ("stack.E004", True)


def test_a_task_cannot_be_sent_to_an_unknown_queue() -> None:
    with pytest.raises(QueueNotFound):
        sample.apply_async(queue="unread")


@pytest.mark.parametrize("queue", settings.QUEUES)
def test_tasks_of_the_app_with_a_queues_name_go_there(queue: str) -> None:
    assert current_app.amqp.router.route({}, f"{queue}.tasks.anything")["queue"].name == queue


@pytest.mark.parametrize("routing_key", [settings.QUEUES[-1], f"0.1.0.{settings.QUEUES[-1]}"])
def test_a_retry_goes_to_the_queue_the_task_came_from(routing_key: str) -> None:
    request = Context(delivery_info={"exchange": "any", "routing_key": routing_key})
    again = sample.signature_from_request(request, args=(), kwargs={})
    assert again.options["queue"] == settings.QUEUES[-1]


def test_a_task_without_a_route_goes_to_default() -> None:
    assert current_app.amqp.router.route({}, "stack.tasks.sample")["queue"].name == "default"


@pytest.mark.django_db
def test_the_sample_command_shows_who_did_each_task(worker, capsys) -> None:
    call_command("sample", *settings.QUEUES)
    assert capsys.readouterr().out.count("SUCCESS") == len(settings.QUEUES)
