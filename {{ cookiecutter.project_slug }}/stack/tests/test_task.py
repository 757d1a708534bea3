"""What a running task and its result tell, with a real worker."""

from typing import Any

import pytest
from celery import Task, current_app, shared_task, states
from django.core.cache import cache

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
