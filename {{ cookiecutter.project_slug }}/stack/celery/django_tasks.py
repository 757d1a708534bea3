"""
A backend for Django's task framework: what @task makes runs on Celery, under its own name.

So routes, logs, Flower and ./manage.py failed are the same as for @shared_task; limits are set in
CELERY_TASK_ANNOTATIONS. Results cost two more writes per task: Django's API looks up a task by its id
alone, so its name and arguments are stored.
https://docs.djangoproject.com/en/6.1/topics/tasks/
"""

import uuid
from datetime import datetime
from typing import Any

import celery
from celery import current_app, shared_task, states
from celery.app.task import Context
from django.conf import settings
from django.tasks import DEFAULT_TASK_QUEUE_NAME, Task, TaskContext, TaskResult, TaskResultStatus
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import TaskError
from django.tasks.exceptions import TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils import timezone
from django.utils.module_loading import import_string

from .results import registered

SENT = "SENT"
STATUS = {
    states.STARTED: TaskResultStatus.RUNNING,
    states.SUCCESS: TaskResultStatus.SUCCESSFUL,
    states.FAILURE: TaskResultStatus.FAILED,
}  # READY in all other states


class CeleryTask(Task):
    """A task of Django's that is also one of Celery's."""

    def __post_init__(self) -> None:
        """Register it with Celery, once: `using` makes copies."""
        Task.__post_init__(self)
        name = self.module_path
        if name not in registered:
            registered.add(name)
            shared_task(name=name, bind=True, track_started=True)(execute)


def execute(self: celery.Task, *args: Any, **kwargs: Any) -> Any:
    """Run a task of Django's in a worker."""
    task = import_string(self.name)
    backend = task.get_backend()
    workers = [str(self.request.hostname)] * (1 + self.request.retries)
    known = {"status": TaskResultStatus.RUNNING, "worker_ids": workers}
    result = make_result(task, str(self.request.id), args, kwargs, **known)
    task_started.send(type(backend), task_result=result)
    context: list[TaskContext] = [TaskContext(task_result=result)] if task.takes_context else []
    try:
        value = task.call(*context, *args, **kwargs)
        object.__setattr__(result, "status", TaskResultStatus.SUCCESSFUL)
        return value
    except Exception:
        object.__setattr__(result, "status", TaskResultStatus.FAILED)
        raise
    finally:
        task_finished.send(type(backend), task_result=result)


def make_result(
    task: Task, task_id: str, args: Any, kwargs: dict[str, Any], **known: Any
) -> TaskResult:
    """Return Django's view of a task that was sent; `known` are further fields of TaskResult."""
    fields: dict[str, Any] = {
        "status": TaskResultStatus.READY,
        "enqueued_at": None,
        "started_at": None,
        "last_attempted_at": None,
        "finished_at": None,
        "errors": [],
        "worker_ids": [],
    }
    return TaskResult(
        task=task,
        id=task_id,
        args=list(args),
        kwargs=kwargs,
        backend=task.backend,
        **fields | known,
    )


class CeleryBackend(BaseTaskBackend):
    """TASKS["default"]["BACKEND"] in settings.py."""

    task_class = CeleryTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        """Allow the queues of the settings."""
        super().__init__(alias, params)
        self.queues = set(settings.QUEUES)

    def enqueue(self, task: Task, args: Any, kwargs: dict[str, Any]) -> TaskResult:
        """Send a task; kombu's OperationalError when the broker is unavailable."""
        self.validate_task(task)
        result = make_result(task, str(uuid.uuid4()), args, kwargs, enqueued_at=timezone.now())
        name = task.module_path
        options: dict[str, Any] = {"eta": task.run_after}
        if task.queue_name != DEFAULT_TASK_QUEUE_NAME:  # else it is routed like any other task
            options["queue"] = task.queue_name
        request = Context(id=result.id, task=name, args=result.args, kwargs=result.kwargs)
        current_app.backend.store_result(result.id, None, SENT, request=request)
        current_app.tasks[name].apply_async(
            tuple(result.args), result.kwargs, task_id=result.id, **options
        )
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> TaskResult:
        """Return what is stored about a task; TaskResultDoesNotExist when nothing is, or no longer."""
        meta = current_app.backend.get_task_meta(result_id)
        if "name" not in meta or meta["name"] not in registered:
            raise TaskResultDoesNotExist(result_id)
        status = STATUS.get(meta["status"], TaskResultStatus.READY)
        known: dict[str, Any] = {"status": status}
        if meta.get("date_done"):
            known["finished_at"] = datetime.fromisoformat(meta["date_done"])
        if meta.get("worker"):
            known["worker_ids"] = [meta["worker"]] * (1 + (meta.get("retries") or 0))
        if status == TaskResultStatus.FAILED:
            error = type(meta["result"])
            path = f"{error.__module__}.{error.__qualname__}"
            known["errors"] = [
                TaskError(exception_class_path=path, traceback=meta["traceback"] or "")
            ]
        task = import_string(meta["name"])
        result = make_result(task, result_id, meta["args"], meta["kwargs"], **known)
        if status == TaskResultStatus.SUCCESSFUL:
            object.__setattr__(result, "_return_value", meta["result"])
        return result
