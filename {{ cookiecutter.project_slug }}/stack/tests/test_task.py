"""What a running task and its result tell, with a real worker."""

import os
import subprocess
import sys
import time
from typing import Any

import celery
import pytest
from celery import Task, current_app, shared_task, states
from django.core.cache import cache

from stack.celery.task import Task as Ours
from stack.checks import PROJECT
from stack.testing import wait_for

pytestmark = pytest.mark.django_db


@shared_task(bind=True, time_limit=60)
def limits(self: Task) -> list[Any]:
    """Return the time limits that it runs under."""
    request: Any = self.request
    return [request.time_limit, request.soft_time_limit]


@shared_task(bind=True, ignore_result=True)
def again(self: Task) -> None:
    """Succeed at the second attempt."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    cache.set("again", True)


def test_a_task_reads_its_time_limits(worker: None) -> None:
    assert limits.delay().get(timeout=120) == [60, 54]
    assert limits.apply_async(time_limit=10).get(timeout=120) == [10, 9]


def test_a_retry_stores_nothing_for_a_task_without_a_result(worker: None) -> None:
    cache.delete("again")
    task = again.delay()
    wait_for(lambda: cache.get("again"))
    assert current_app.backend.get_state(task.id) == states.PENDING


# A countdown ---------------------------------------------------------------------------------------


class Foreign(celery.Task):
    """A class that is not derived from the stack's."""

    def before_start(self, task_id: str, args: tuple, kwargs: dict) -> None:
        """Leave out what the stack's class does."""


class Careless(Ours):
    """A class that is, and leaves out the same."""

    before_start = Foreign.before_start


def begin() -> float:
    """Return when it began."""
    return time.time()


TASKS = [
    shared_task(base=base, name=f"{__name__}.{base.__name__}")(begin)
    for base in (Foreign, Careless, Ours)
]


@pytest.fixture
def impatient_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that redelivers what nobody has acknowledged or renewed for a second."""
    monkeypatch.setitem(current_app.conf.broker_transport_options, "visibility_timeout", 1)


def test_no_task_begins_before_its_countdown_is_over(impatient_broker: None, worker: None) -> None:
    sent = time.time()
    results = [task.apply_async(countdown=4) for task in TASKS]
    assert min(result.get(timeout=120) for result in results) >= sent + 4


def test_none_does_with_the_transport_of_kombu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "before_its_countdown", __file__],
        cwd=PROJECT,
        env=os.environ | {"REDIS_TRANSPORT": "kombu"},
        capture_output=True,
        text=True,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
