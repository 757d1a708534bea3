"""The main process's view of a task that a child process runs."""

from typing import Any

from celery.app.task import Context
from celery.worker import request

from stack import logs


class Request(request.Request):
    """Celery's request, whose log lines have the fields of the task when the child cannot log them."""

    _context: Context

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Log with the task's fields that it ran for too long."""
        with logs.task_fields(self._context):
            super().on_timeout(soft, timeout)

    def on_failure(self, *args: Any, **kwargs: Any) -> Any:
        """Log with the task's fields that it failed or that its child was killed."""
        with logs.task_fields(self._context):
            return super().on_failure(*args, **kwargs)
