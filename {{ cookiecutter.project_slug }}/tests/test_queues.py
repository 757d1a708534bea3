import pytest
from celery.app.task import Context
from celery.exceptions import QueueNotFound
from django.conf import settings
from django.core.management import call_command

from config.celery import app
from core.checks import queues_have_workers, worker_queues
from core.tasks import sample


def test_queues_and_workers_are_the_same() -> None:
    assert worker_queues() == set(settings.QUEUES)
    assert queues_have_workers() == []


def test_a_queue_without_a_worker_is_an_error(settings) -> None:
    settings.QUEUES = [*settings.QUEUES, "unread"]
    assert [error.id for error in queues_have_workers()] == ["core.E001"]


def test_a_route_to_an_unknown_queue_is_an_error(settings) -> None:
    settings.CELERY_TASK_ROUTES = {"core.*": {"queue": "unread"}}
    assert [error.id for error in queues_have_workers()] == ["core.E003"]


def test_a_task_cannot_be_sent_to_an_unknown_queue() -> None:
    with pytest.raises(QueueNotFound):
        sample.apply_async(queue="unread")


@pytest.mark.parametrize("queue", settings.QUEUES)
def test_tasks_of_the_app_with_a_queues_name_go_there(queue: str) -> None:
    assert app.amqp.router.route({}, f"{queue}.tasks.anything")["queue"].name == queue


@pytest.mark.parametrize("routing_key", [settings.QUEUES[-1], f"0.1.0.{settings.QUEUES[-1]}"])
def test_a_retry_goes_to_the_queue_the_task_came_from(routing_key: str) -> None:
    request = Context(delivery_info={"exchange": "any", "routing_key": routing_key})
    again = sample.signature_from_request(request, args=(), kwargs={})
    assert again.options["queue"] == settings.QUEUES[-1]


def test_a_task_without_a_route_goes_to_default() -> None:
    assert app.amqp.router.route({}, "core.tasks.sample")["queue"].name == "default"


@pytest.mark.django_db
def test_the_sample_command_shows_who_did_each_task(worker, capsys) -> None:
    call_command("sample", *settings.QUEUES)
    assert capsys.readouterr().out.count("SUCCESS") == len(settings.QUEUES)
