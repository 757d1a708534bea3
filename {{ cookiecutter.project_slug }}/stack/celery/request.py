"""The main process's view of a task that a child process runs."""

import time
from typing import Any

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from celery.app.task import Context
from celery.exceptions import Ignore, Terminated
from celery.worker import request, state

from stack import brokers, logs, metrics
from stack.activity import activity

from . import results
from .task import AlreadyDone


def task_accepted(begun: request.Request) -> None:
    """Count a task that has begun as Celery does, and for its queue."""
    state.task_accepted(begun)
    activity.started[logs.queue(begun)] += 1


# What the main process has a child process call, and what it calls itself for tasks of every class.
request.fast_trace_task = results.run_task  # type: ignore[attr-defined]
request.task_accepted = task_accepted  # type: ignore[attr-defined]


class Counted(request.Request):
    """Celery's request, also of tasks of other classes: it counts how the task ended."""

    _context: Context
    _state: str | None = None  # how it ended
    _seconds: float | None = None
    _is_counted = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Take the outcome before what Celery does; its subclass for each task calls no super()."""
        super().__init_subclass__(**options)
        on_success: Any = cls.on_success

        def take_outcome(self: Counted, outcome: tuple[int, Any, float], **options: Any) -> None:
            self.take(outcome)
            on_success(self, outcome, **options)
            self.count_early()

        cls.on_success = take_outcome  # type: ignore[method-assign, assignment]

    def take(self, outcome: tuple[int, Any, float]) -> None:
        """Keep what a child process reports: whether the task failed, what it returned, its seconds."""
        failed, _, self._seconds = outcome
        self._state = None if failed else metrics.SUCCEEDED

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Find out what kind of end it is."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, AlreadyDone):
            self._state = metrics.SUCCEEDED
        elif not isinstance(error, Ignore | Terminated):
            self._state = metrics.FAILED
        try:
            return super().on_failure(exc_info, *args, **kwargs)
        finally:
            self.count_early()

    def on_retry(self, exc_info: Any) -> None:
        """Note that it is tried again."""
        self._state = metrics.RETRIED
        super().on_retry(exc_info)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Note that it failed, if this is the hard limit."""
        if not soft:
            self._state = metrics.FAILED
        super().on_timeout(soft, timeout)
        self.count_early()

    def _success_was_stored(self) -> Any:
        """Note that it has succeeded, if its child was lost after that."""
        found = super()._success_was_stored()  # type: ignore[misc]
        if found:
            self._state = metrics.SUCCEEDED
        return found

    def acknowledge(self) -> None:
        """Count it with the acknowledgement."""
        if not self.acknowledged:
            self.count()
        super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        """Count it, unless it is to run again."""
        if not (requeue or self.acknowledged):
            self.count()
        super().reject(requeue)

    def count_early(self) -> None:
        """Count a task that was acknowledged when it began."""
        if not self.task.acks_late:
            self.count()

    def count(self) -> None:
        """Count how it ended, if it has and once."""
        if self._state is None or self._is_counted:
            return
        self._is_counted = True
        if self._seconds is None and self.time_start:
            self._seconds = time.time() - self.time_start
        metrics.count_task(
            self.message,
            logs.queue(self),
            self.name,
            self._state,
            self._seconds,
            bool(self.acknowledged),
        )


class Request(Counted):
    """The same, which logs with the task's fields, and stores results that it is handed over."""

    _result: brokers.Result | None = None

    def take(self, outcome: tuple[int, Any, float]) -> None:
        """Take the result, too."""
        super().take(outcome)
        self._result = getattr(outcome[1], "result", None)

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
