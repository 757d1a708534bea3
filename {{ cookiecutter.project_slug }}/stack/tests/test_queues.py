from pathlib import Path

import celery
import pytest
from celery import Task, current_app, shared_task
from celery.app.routes import Router, prepare
from celery.app.task import Context
from celery.exceptions import QueueNotFound
from celery.signals import before_task_publish
from django.conf import settings
from django.core.management import call_command, get_commands

from stack import activity, brokers, checks
from stack.brokers import rabbitmq
from stack.checks import (
    app_is_the_stacks,
    commands_are_the_stacks,
    no_task_is_stranded,
    promises_hold,
    queues_have_workers,
    scheduled_tasks_exist,
    tasks_have_queues,
    time_limits_fit,
    worker_queues,
)
from stack.tasks import sample
from stack.testing import wait_for


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
    monkeypatch, tmp_path: Path, lines: str
) -> None:
    monkeypatch.setattr(checks, "PROJECT", tmp_path)
    monkeypatch.setenv("COMPOSE_FILE", "compose.yaml:mine.yaml")
    (tmp_path / "compose.yaml").write_text("-Q b,c")
    (tmp_path / "mine.yaml").write_text(lines)
    assert worker_queues() == {"a", "b", "c"}


def use_routes(monkeypatch, *routes: object) -> None:
    """Let these be CELERY_TASK_ROUTES."""
    queues = current_app.amqp.queues
    router = Router(prepare(list(routes)), queues, create_missing=False, app=current_app)
    monkeypatch.setattr(current_app.amqp, "router", router)


def by_name(name: str, *args: object, **kwargs: object) -> str:
    """Route by a function."""
    return "unread"


def by_arguments(name: str, args: tuple, *rest: object, **kwargs: object) -> str:
    """Route by the arguments, which the check does not know."""
    return args[0]


@pytest.mark.parametrize(
    "route",
    [
        {"stack.*": "unread"},
        {"stack.tasks.sample": "unread"},
        {"stack.tasks.sample": {"queue": "unread"}},
        [("other.*", "default"), ("stack.tasks.*", {"queue": "unread"})],
        by_name,
        "stack.tests.test_queues.by_name",
    ],
)
def test_a_route_to_an_unknown_queue_is_an_error(monkeypatch, route: object) -> None:
    use_routes(monkeypatch, route)
    assert {error.id for error in tasks_have_queues()} == {"stack.E003"}


def test_a_route_by_arguments_is_none(monkeypatch) -> None:
    use_routes(monkeypatch, by_arguments)
    assert tasks_have_queues() == []


def test_an_unknown_queue_in_a_decorator_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(sample, "queue", "unread", raising=False)
    (error,) = tasks_have_queues()
    assert (error.id, '"stack.tasks.sample"' in error.msg) == ("stack.E003", True)


def test_an_unknown_queue_in_a_schedule_is_an_error(monkeypatch) -> None:
    entry = {"task": sample.name, "schedule": 60, "options": {"queue": "unread"}}
    monkeypatch.setitem(current_app.conf.beat_schedule, "typo", entry)
    (error,) = tasks_have_queues()
    sentence = "The queue of \"typo\" in beat's schedule is wrong: Queue 'unread' missing from task_queues."
    assert (error.id, error.msg) == ("stack.E003", sentence)


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


# A worker of several queues ------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_worker_of_several_queues_counts_for_each_what_it_did(worker) -> None:
    activity.store().flushdb()
    activity.activity.started.clear()
    activity.activity.reported.clear()
    sent = {queue: number for number, queue in enumerate(settings.QUEUES)}
    for result in [
        sample.apply_async(kwargs={"steps": 0}, queue=queue)
        for queue, number in sent.items()
        for _ in range(number)
    ]:
        result.get(timeout=120)

    def done() -> dict[str, int]:
        activity.activity.report_worker()
        workers, _ = activity.read(settings.QUEUES)
        return {name: about.done[-1] for name, about in workers.items() if about.up}

    wait_for(lambda: done() == sent)


@pytest.mark.django_db
def test_a_worker_of_several_queues_obeys_for_each(worker, capsys) -> None:
    call_command("rate_limit", sample.name, "0")
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[1:] for row in rows] == [["0"]]


# What the promises hold for ------------------------------------------------------------------------


class Foreign(celery.Task):
    """A class that is not derived from the stack's."""

    abstract = True

    def before_start(self, *args: object) -> None:
        """Leave out what the stack's class does."""


def test_a_task_of_another_class_or_queue_is_named(monkeypatch, settings) -> None:
    assert [warning for warning in promises_hold() if "stack.tests." not in warning.msg] == []
    registry = current_app.tasks
    monkeypatch.setitem(registry, "shop.mine", Foreign())
    *settings.QUEUES, dropped = settings.QUEUES
    use_routes(monkeypatch, {"stack.tasks.sample": dropped})
    by_class, by_queue = promises_hold()
    assert {by_class.id, by_queue.id} == {"stack.W003"}
    assert by_class.msg.startswith("What docs/broker.md promises does not hold for shop.mine")
    assert "not hold for stack.tasks.sample: in a queue" in by_queue.msg


def test_a_queue_that_the_broker_would_know_otherwise_is_named(monkeypatch) -> None:
    monkeypatch.setattr(brokers, "current", lambda: rabbitmq)  # these queues are declared for Redis
    assert "stack.tasks.sample, " in promises_hold()[-1].msg


def test_workers_report_to_redis_whatever_the_cache_is(settings) -> None:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    assert activity.store.__wrapped__().ping()


def test_a_celery_app_of_another_class_is_an_error(monkeypatch) -> None:
    assert app_is_the_stacks() == []
    monkeypatch.setattr(checks, "current_app", celery.Celery(set_as_current=False))
    assert [error.id for error in app_is_the_stacks()] == ["stack.E007"]
    assert promises_hold() == no_task_is_stranded() == []


def test_a_command_of_another_app_is_no_command_of_the_stack(monkeypatch) -> None:
    assert commands_are_the_stacks() == []
    monkeypatch.setattr(checks, "get_commands", lambda: get_commands() | {"publish": "shop"})
    (error,) = commands_are_the_stacks()
    assert (error.id, error.msg) == (
        "stack.E008",
        "./manage.py publish is that of shop, not the stack's.",
    )


# Time limits --------------------------------------------------------------------------------------

LIMIT = settings.TASK_TIME_LIMIT


@shared_task(time_limit=0.5 * LIMIT)
def hard() -> None:
    """Do nothing, with a hard limit of its own."""


@shared_task(soft_time_limit=0.45 * LIMIT)
def soft() -> None:
    """Do nothing, with a soft limit of its own."""


@shared_task(soft_time_limit=0.1 * LIMIT, time_limit=LIMIT)
def both() -> None:
    """Do nothing, with both limits, one of them the default."""


@pytest.mark.parametrize(
    ("task", "limits"), [(hard, (0.5, 0.45)), (soft, (0.5, 0.45)), (both, (1, 0.1))]
)
def test_a_task_sets_one_time_limit_and_the_other_follows(task: Task, limits: tuple) -> None:
    assert (task.time_limit, task.soft_time_limit) == pytest.approx([LIMIT * at for at in limits])
    assert time_limits_fit() == []


def test_a_task_without_time_limits_has_those_of_the_settings() -> None:
    conf = current_app.conf
    assert (sample.time_limit, sample.soft_time_limit) == (
        conf.task_time_limit,
        conf.task_soft_time_limit,
    )


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ((None, None), (None, None)),  # the worker takes the task's own, or its WORKER_TIME_LIMIT
        ((0.2, None), (0.2, 0.18)),
        ((None, 0.18), (0.2, 0.18)),
        ((None, 0.95), (1, 0.95)),
        ((0.2, 0.05), (0.2, 0.05)),
    ],
)
def test_a_call_sets_one_time_limit_and_the_other_follows(given: tuple, sent: tuple) -> None:
    found = []

    def note(headers: dict, **kwargs: object) -> None:
        found.extend(headers["timelimit"])

    names = ("time_limit", "soft_time_limit")
    options = {name: at * LIMIT for name, at in zip(names, given, strict=True) if at}
    before_task_publish.connect(note)
    try:
        hard.apply_async(**options)
    finally:
        before_task_publish.disconnect(note)
    assert found == pytest.approx([at and at * LIMIT for at in sent])


def test_a_time_limit_that_is_too_long_is_refused(monkeypatch) -> None:
    sentence = f"time_limit is {LIMIT + 1} s, and TASK_TIME_LIMIT only {LIMIT} s: raise that"
    for name in ("time_limit", "soft_time_limit"):
        with pytest.raises(ValueError, match=sentence):
            hard.apply_async(**{name: LIMIT + 1})
        monkeypatch.setattr(hard, name, LIMIT + 1)
    (error,) = time_limits_fit()
    assert (error.id, sentence in error.msg) == ("stack.E005", True)


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="soft_time_limit is 3 s, and time_limit only 2 s"):
        hard.apply_async(time_limit=2, soft_time_limit=3)
