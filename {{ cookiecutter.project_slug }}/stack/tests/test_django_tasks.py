"""Django's own task framework on Celery."""

from datetime import timedelta

import pytest
from celery import current_app
from django.conf import settings
from django.utils import timezone

from stack.testing import wait_for

pytest.importorskip("django.tasks", reason="Django 6.0 has it")
from django.tasks import TaskContext, TaskResult, TaskResultStatus, task
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist


@task
def add(a: int, b: int) -> int:
    return a + b


@task
async def add_async(a: int, b: int) -> int:
    return a + b


@task(takes_context=True)
def attempt(context: TaskContext) -> int:
    return context.attempt


@task
def fail() -> None:
    raise ValueError("This task was sent to fail.")


def wait(result: TaskResult) -> TaskResult:
    """Wait until a task has ended."""

    def ended() -> bool:
        result.refresh()
        return result.is_finished

    wait_for(ended)
    return result


@pytest.mark.django_db
@pytest.mark.parametrize("function", [add, add_async])
def test_a_task_runs_in_a_worker_and_its_result_comes_back(worker, function) -> None:
    result = function.enqueue(1, b=2)
    assert wait(result).return_value == 3
    found = function.get_result(result.id)
    assert (found.args, found.kwargs, found.return_value) == ([1], {"b": 2}, 3)
    assert found.finished_at is not None


@pytest.mark.django_db
def test_a_failure_has_its_error(worker) -> None:
    result = wait(fail.enqueue())
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class is ValueError
    assert "sent to fail" in result.errors[0].traceback


@pytest.mark.django_db
def test_a_task_can_have_the_context(worker) -> None:
    assert wait(attempt.enqueue()).return_value == 1


def test_before_a_worker_takes_it_a_task_is_ready() -> None:
    current_app.control.purge()
    result = add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1, 2)
    assert add.get_result(result.id).status == TaskResultStatus.READY
    current_app.control.purge()


@pytest.mark.parametrize("queue", settings.QUEUES)
def test_a_task_goes_to_its_queue_under_its_own_name(queue: str) -> None:
    current_app.control.purge()
    add.using(queue_name=queue).enqueue(1, 2)
    with current_app.connection_for_read() as connection:
        message = current_app.amqp.queues[queue](connection.default_channel).get(no_ack=True)
    assert message is not None
    assert message.headers["task"] == add.module_path


def test_an_unknown_queue_and_an_unknown_result_are_refused() -> None:
    with pytest.raises(InvalidTask, match="unread"):
        add.using(queue_name="unread")
    with pytest.raises(TaskResultDoesNotExist):
        add.get_result("no-such-id")
