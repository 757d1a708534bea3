"""
Long countdowns in short steps, for brokers with a visibility timeout.

A worker takes a task with a countdown, an eta or a retry delay at once and holds it until it is due.
Redis redelivers what is held for longer than the visibility timeout: with 50 s to wait and a timeout
of 20 s the task would be delivered twice more, and run three times. So its message says "wait for a
quarter of the timeout", and the worker that has waited sends it again.
"""

from datetime import datetime, timedelta
from typing import Any

from celery import Task, current_app
from celery.exceptions import Ignore, Reject
from django.utils import timezone


def shorten(headers: dict[str, Any], **kwargs: object) -> None:
    """Replace an eta that is too far away by one step; a receiver of before_task_publish."""
    headers.pop("due", None)
    timeout = current_app.conf.broker_transport_options.get("visibility_timeout")
    eta = headers.get("eta")
    if timeout and eta:
        step = timezone.now() + timedelta(seconds=timeout / 4)
        if datetime.fromisoformat(eta) > step:
            headers |= {"due": eta, "eta": step.isoformat()}


def send_again_unless_due(task: Task, args: tuple, kwargs: dict) -> None:
    """Raise Ignore after sending a task that has not waited long enough again, Reject if that fails."""
    due = task.request.get("due")
    if not due or datetime.fromisoformat(due) <= timezone.now():
        return
    again = task.signature_from_request(
        args=args, kwargs=kwargs, eta=datetime.fromisoformat(due), retries=task.request.retries
    )
    try:
        again.apply_async()
    except Exception as error:  # the broker is unavailable: the message stays as it is
        raise Reject(error, requeue=True) from error
    raise Ignore
