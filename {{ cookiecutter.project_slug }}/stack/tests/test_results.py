"""Which results a child process hands over to the main process, to be stored with the acknowledgement."""

import pickle
import uuid
from functools import partial
from typing import Any

import pytest
from celery import current_app, shared_task, states
from celery.app import trace

from stack.celery import results


@shared_task
def double(text: str) -> str:
    """Return the text twice."""
    return text + text


@shared_task(ignore_result=True)
def forgotten() -> None:
    """Return nothing that is kept."""


@shared_task(acks_late=False)
def early() -> None:
    """Be acknowledged before the start."""


@shared_task
def failing() -> None:
    """Fail."""
    raise ValueError


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a task as a child process does; it returns the outcome and the id."""
    # Celery's own needs a registry that only a worker makes.
    monkeypatch.setattr(trace, "fast_trace_task", partial(trace.trace_task_ret, app=current_app))

    def run(task: Any, *args: object, **request: object) -> tuple[Any, str]:
        task_id = str(uuid.uuid4())
        message = {"id": task_id, "task": task.name, **request}
        outcome = results.run_task(task.name, task_id, message, (args, {}, {}), None, None)
        return outcome[1], task_id

    return run


def test_a_result_is_handed_over_and_not_stored_by_the_child(run: Any) -> None:
    text, task_id = run(double, "ab")
    assert text == "'abab'"
    database, key, seconds, value = pickle.loads(pickle.dumps(text)).result  # noqa: S301
    assert current_app.AsyncResult(task_id).state == states.PENDING
    assert current_app.conf.result_backend.endswith(f"/{database}")
    current_app.backend.set(key, value, expires=seconds)  # type: ignore[attr-defined]
    result = current_app.AsyncResult(task_id)
    assert (result.state, result.result) == (states.SUCCESS, "abab")
    result.forget()


def test_the_child_stores_what_is_large(run: Any) -> None:
    text, task_id = run(double, "x" * results.LARGEST)
    assert not isinstance(text, results.HandedOver)
    result: Any = current_app.AsyncResult(task_id)
    assert len(result.result) == 2 * results.LARGEST
    result.forget()


def test_the_child_stores_an_early_acknowledged_tasks_result_and_a_failure(run: Any) -> None:
    for task, state in ((early, states.SUCCESS), (failing, states.FAILURE)):
        outcome, task_id = run(task)
        assert not isinstance(outcome, results.HandedOver)
        result = current_app.AsyncResult(task_id)
        assert result.state == state
        current_app.backend.take_failed(task_id)  # type: ignore[attr-defined]
        result.forget()


def test_a_task_without_a_result_has_none(run: Any) -> None:
    assert not isinstance(run(forgotten)[0], results.HandedOver)


def test_kombus_transport_is_handed_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.brokers.redis.result_database", lambda: None)
    text, task_id = run(double, "ab")
    assert not isinstance(text, results.HandedOver)
    current_app.AsyncResult(task_id).forget()
