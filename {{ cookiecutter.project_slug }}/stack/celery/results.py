"""The result backend: it also stores which tasks failed, and what they were called with."""

import time
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend

from stack import logs

from . import django_tasks

FAILED = "failed"  # ids in the order of their failures, beside the results themselves
KEPT = 1000


class Results(RedisBackend):
    """
    Celery's results in Redis, with more about failed tasks, for ./manage.py failed.

    result_extended, Celery's own setting, would store the arguments of every task.
    """

    def _get_result_meta(
        self, result: Any, state: str, traceback: Any, request: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        meta = super()._get_result_meta(  # type: ignore[misc]
            result, state, traceback, request, *args, **kwargs
        )
        # For a message that it cannot decode, Celery passes a request with hardly any attributes.
        name = getattr(request, "task", None)
        if name and (state == states.FAILURE or name in django_tasks.registered):
            meta |= {
                "name": request.task,
                "args": request.args,
                "kwargs": request.kwargs,
                "worker": request.hostname,
                "retries": request.retries,
                "queue": logs.queue(request),
                "request_id": request.get("request_id"),
            }
        return meta

    def _store_result(
        self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any
    ) -> Any:
        if state == states.FAILURE:
            # First, so that a result that can be seen is on the list.
            with self.client.pipeline(transaction=False) as pipe:
                pipe.zadd(FAILED, {task_id: time.time()})
                pipe.zremrangebyrank(FAILED, 0, -KEPT - 1)
                pipe.execute()
        return super()._store_result(  # type: ignore[misc]
            task_id, result, state, *args, **kwargs
        )

    def failed(self) -> dict[str, dict[str, Any]]:
        """Return what is stored about failed tasks by their ids, the last one first."""
        ids = [task_id.decode() for task_id in self.client.zrevrange(FAILED, 0, -1)]
        found = {task_id: self.get_task_meta(task_id) for task_id in ids}
        # Results expire, and this list does not.
        return {task_id: meta for task_id, meta in found.items() if meta.get("name")}

    def take_failed(self, task_id: str) -> bool:
        """Remove a task from the list; return whether it was there, which is true once."""
        return bool(self.client.zrem(FAILED, task_id))

    def put_failed_back(self, task_id: str) -> None:
        """Put a task on the list again."""
        self.client.zadd(FAILED, {task_id: time.time()})
