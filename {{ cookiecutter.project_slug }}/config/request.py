"""What a worker itself knows of a task, which a child runs."""

from typing import Any

from celery.app.task import Context
from celery.worker import request

from core import logs


class Request(request.Request):
    """Celery's request, which tells of the task in the log when the child no longer can."""

    _context: Context

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Do as Celery does when a task runs for too long."""
        with logs.within(self._context):
            super().on_timeout(soft, timeout)

    def on_failure(self, *args: Any, **kwargs: Any) -> Any:
        """Do as Celery does when a task failed or its child was killed."""
        with logs.within(self._context):
            return super().on_failure(*args, **kwargs)
