"""Tasks that failed: what was to run after them, and sending them again."""

from typing import Any

from celery import current_app
from kombu.exceptions import OperationalError

from . import logs
from .celery.results import Results
from .celery.task import forget_redeliveries

ONLY_REDIS = "Failed tasks are known only if the results are in Redis."


def not_run(meta: dict[str, Any]) -> list[tuple[str, str]]:
    """Return id and name of each task that was to run after one that failed, in their order."""
    message = meta.get("message", {})
    steps = [*message.get("link", []), *reversed(message.get("chain", []))]
    if message.get("chord"):
        steps.append(message["chord"])
    return [(step["options"].get("task_id") or "", step["task"]) for step in steps]


def why_not(task_id: str, meta: dict[str, Any]) -> str:
    """Return why a task cannot be sent again, or ""."""
    if meta["args"] is None:
        return f"{task_id} is not sent again: its message could not be read."
    message = meta.get("message", {})
    chords = [
        message.get("chord"),
        *(step["options"].get("chord") for step in message.get("chain", [])),
    ]
    callback = next(filter(None, chords), None)
    if not callback:
        return ""
    return (
        f"{task_id} is not sent again: it belongs to a chord, whose callback {callback['task']} failed"
        " with it and would not run. Send the chord again."
    )


def send(backend: Results, task_id: str, meta: dict[str, Any]) -> bool:
    """
    Send a task again under its id; return False when another did so meanwhile.

    Raises kombu's OperationalError when the broker does not accept it or has no such queue.
    """
    if not backend.take_failed(task_id):
        return False
    # So that the log has both under one name.
    request_id = {"request_id": meta["request_id"]} if meta["request_id"] else {}
    token = logs.fields.set(request_id)
    message = {"task_id": task_id} | meta.get("message", {})
    forget_redeliveries(task_id)
    try:
        # By its name: whatever this process knows, the worker decides.
        current_app.send_task(
            meta["name"], meta["args"], meta["kwargs"], queue=meta["queue"] or None, **message
        )
    except (OperationalError, KeyError) as error:  # the second: no such queue
        backend.put_failed_back(task_id)
        raise OperationalError(f"{task_id} was not sent again: {error}") from error
    finally:
        logs.fields.reset(token)
    return True
