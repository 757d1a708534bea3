"""
A transactional outbox: a task is a row of the database until the broker has it.

The row is stored with the transaction, so a task is sent if, and only if, that is committed. It is
sent right after the commit and its row deleted; when the broker is unavailable then, the row stays, and
tasks.py sends it later. A process that dies between the two leaves the row, too: such a task is sent
again, with the same id.
"""

import time
from datetime import timedelta
from functools import partial
from typing import Any, ParamSpec

from celery import Task
from celery.utils import uuid
from django.apps import apps as registry
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, transaction
from django.utils import timezone
from kombu.utils import json

from stack import logs

P = ParamSpec("P")

# Seconds after an attempt that failed in which this process leaves tasks to beat: a request with many
# of them waits for the broker only once.
PAUSE = 10
pause_until = 0.0  # as of time.monotonic()


def delay_on_commit(  # noqa: UP047, tests of the template read this with Python 3.11
    task: Task[P, Any], *args: P.args, **kwargs: P.kwargs
) -> str:
    """Do what apply_async_on_commit does, with the task's arguments only."""
    return apply_async_on_commit(task, args, kwargs)


def apply_async_on_commit(
    task: Task[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    using: str = DEFAULT_DB_ALIAS,
    **options: Any,
) -> str:
    """
    Store a task with the transaction, and send it when that is committed; return its id.

    `options` are those of apply_async: "countdown" and "expires" count from now, however late the task
    is sent. TypeError when JSON cannot express one, or an argument.
    """
    if not registry.is_installed("stack.outbox"):
        raise ImproperlyConfigured('Add "stack.outbox" to INSTALLED_APPS (docs/how-to.md).')
    from .models import Message  # not before the apps are loaded

    task_id = options.pop("task_id", None) or uuid()
    if task.app.conf.task_always_eager:  # in tests: no broker, so nothing can be lost
        send = partial(task.apply_async, args, kwargs, task_id=task_id, **options)
        transaction.on_commit(send, using=using)
        return task_id
    now = timezone.now()
    options = {"expires": task.expires} | options
    if isinstance(options["expires"], int | float):
        options["expires"] = now + timedelta(seconds=options["expires"])
    if countdown := options.pop("countdown", None):
        options["eta"] = now + timedelta(seconds=countdown)
    request = {"request_id": logs.fields.get().get("request_id")}
    options["headers"] = request | (options.get("headers") or {})
    # Celery's own JSON, for a message as it would be without the row: UUIDs and dates stay such.
    body = json.dumps([args, kwargs, options])
    message = Message.objects.using(using).create(name=task.name, task_id=task_id, body=body)
    transaction.on_commit(partial(send_now, message), using=using)
    return task_id


def send_now(message: Any) -> None:
    """Send a task that was stored just now, unless the broker was unavailable a moment ago."""
    global pause_until
    if time.monotonic() > pause_until and not message.send():
        pause_until = time.monotonic() + PAUSE
