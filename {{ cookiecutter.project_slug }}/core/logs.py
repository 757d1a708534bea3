"""
What a line of the log tells besides its message: the request and the task it belongs to.

nginx names a request, whatever the client says. The name goes into each task that the request
sends, and from there into their tasks. Where no request is at the bottom, as with beat's, the id
of the first task is the name.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

# What every line of the current request or task tells.
fields: ContextVar[Mapping[str, Any]] = ContextVar("fields", default=MappingProxyType({}))
started: ContextVar[float] = ContextVar("started")  # the task, as of time.monotonic()

# What uvicorn and Django hand their lines, and no log wants.
UNWANTED = ["color_message", "request"]


class Json(JsonFormatter):
    """Writes an object a line: https://nhairs.github.io/python-json-logger"""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            defaults={"time": None},  # the first in the line
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger"},
            reserved_attrs=[*RESERVED_ATTRS, *UNWANTED],
            json_ensure_ascii=False,
        )

    def add_fields(self, log_data: dict, record: logging.LogRecord, message_dict: dict) -> None:
        """Add those of the request or task; on the line that tells how a task ended, that too."""
        super().add_fields(log_data, record, message_dict)
        log_data.update(fields.get())
        if record.name == "celery.app.trace" and (data := log_data.pop("data", None)):
            log_data["outcome"] = outcome(data)
            if begun := started.get(None):
                log_data["duration"] = round(time.monotonic() - begun, 3)


class Text(logging.Formatter):
    """Writes a line to be read; only a traceback has lines of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Put the name of the request behind the message, which moves no cursor."""
        text = "".join(
            c if c.isprintable() else repr(c)[1:-1] for c in super().formatMessage(record)
        )
        name = fields.get().get("request_id")
        return f"{text} [{name}]" if name else text


def outcome(data: Mapping[str, Any]) -> str:
    """Say in one word what Celery tells of the end of a task."""
    if "runtime" in data:
        return "succeeded"
    if "description" not in data:
        return "retry"
    if "raised" in data["description"] or "ERROR" in data["description"]:
        return "failed"
    return "rejected" if data["description"] == "rejected" else "ignored"


def queue(request: Any) -> str:
    """
    Name the queue that a task came from; "" when it was called without one.

    In the routing key of a message that the broker delayed, the queue's name is the last part.
    """
    routing_key = (request.delivery_info or {}).get("routing_key") or ""
    return routing_key.rpartition(".")[2]


def about(request: Any) -> dict[str, str]:
    """Give the fields of a task from its celery.app.task.Context."""
    return {
        "request_id": request.get("request_id") or fields.get().get("request_id") or request.id,
        "task": request.get("task"),
        "task_id": request.id,
        "queue": queue(request),
    }


@contextmanager
def within(request: Any) -> Iterator[None]:
    """Have the lines of a block tell of a task."""
    token = fields.set(about(request))
    try:
        yield
    finally:
        fields.reset(token)


def pass_on(headers: dict[str, Any], **kwargs: object) -> None:
    """Name the request in the message of a task; a receiver of before_task_publish."""
    headers["request_id"] = fields.get().get("request_id") or headers["id"]


def begin(task: Any, **kwargs: object) -> None:
    """Have the lines that follow tell of a task; a receiver of task_prerun."""
    task.request.tokens = started.set(time.monotonic()), fields.set(about(task.request))


def end(task: Any, **kwargs: object) -> None:
    """Have them tell of what was before; a receiver of task_postrun."""
    before, others = task.request.tokens
    started.reset(before)
    fields.reset(others)
