"""The main process's view of a task that a child process runs."""

from typing import Any

from celery.app.task import Context
from celery.worker import request, state

from stack import brokers, logs
from stack.activity import activity

from . import results


def task_accepted(begun: request.Request) -> None:
    """Count a task that has begun as Celery does, and for its queue."""
    state.task_accepted(begun)
    activity.started[logs.queue(begun)] += 1


# What the main process has a child process call, and what it calls itself for tasks of every class.
request.fast_trace_task = results.run_task  # type: ignore[attr-defined]
request.task_accepted = task_accepted  # type: ignore[attr-defined]


class Request(request.Request):
    """Celery's request: it logs with the task's fields, and stores results that it is handed over."""

    _context: Context
    _result: brokers.Result | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Take the result before what Celery does; its subclass for each task calls no super()."""
        super().__init_subclass__(**options)
        on_success: Any = cls.on_success

        def take_result(self: Request, outcome: tuple[int, Any, float], **options: Any) -> None:
            self._result = getattr(outcome[1], "result", None)
            on_success(self, outcome, **options)

        cls.on_success = take_result  # type: ignore[method-assign, assignment]

    def acknowledge(self) -> None:
        """Acknowledge the message, and store the result in the same step."""
        if self._result and self.acknowledged:  # too late for that
            _, key, seconds, value = self._result
            backend: Any = self.task.backend
            backend.set(key, value, expires=seconds)
        elif self._result:
            message: Any = self.message
            message.channel.settle_with(message.delivery_tag, self._result)
        super().acknowledge()

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Log with the task's fields that it ran for too long."""
        with logs.task_fields(self._context):
            super().on_timeout(soft, timeout)

    def on_failure(self, *args: Any, **kwargs: Any) -> Any:
        """Log with the task's fields that it failed or that its child was killed."""
        with logs.task_fields(self._context):
            return super().on_failure(*args, **kwargs)
