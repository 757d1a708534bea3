"""
The fields of a log line besides its message: the request and the task that it belongs to.

nginx gives each request an ID and ignores one that a client sends. It is passed on to each task that
the request sends, and from there to the tasks of those. Without a request, as with beat's tasks, the
id of the first task takes its place.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from types import MappingProxyType
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

# The fields of every line of the current request or task.
fields: ContextVar[Mapping[str, Any]] = ContextVar("fields", default=MappingProxyType({}))
started: ContextVar[float] = ContextVar("started")  # the task, as of time.monotonic()

# What uvicorn and Django add to their records, for handlers of their own.
UNWANTED = ["color_message", "request"]


class Json(JsonFormatter):
    """One JSON object per line: https://nhairs.github.io/python-json-logger"""

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
        """Add those of the request or task; for the end of a task also outcome and duration."""
        super().add_fields(log_data, record, message_dict)
        log_data.update(fields.get())
        if record.name == "celery.app.trace" and (data := log_data.pop("data", None)):
            log_data["outcome"] = outcome(data)
            if start := started.get(None):
                log_data["duration"] = round(time.monotonic() - start, 3)  # seconds


class Text(logging.Formatter):
    """One readable line per record; only a traceback has lines of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return local time, in TIME_ZONE of the settings, with its offset."""
        moment = datetime.fromtimestamp(record.created).astimezone()
        return moment.isoformat(" ", "milliseconds")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Append the request ID; escape whatever would control a terminal."""
        text = "".join(
            c if c.isprintable() else repr(c)[1:-1] for c in super().formatMessage(record)
        )
        request_id = fields.get().get("request_id")
        return f"{text} [{request_id}]" if request_id else text


def outcome(data: Mapping[str, Any]) -> str:
    """Return in one word what Celery logs about the end of a task."""
    if "runtime" in data:
        return "succeeded"
    if "description" not in data:
        return "retry"
    if "raised" in data["description"] or "ERROR" in data["description"]:
        return "failed"
    return "rejected" if data["description"] == "rejected" else "ignored"


def queue(request: Any) -> str:
    """
    Return the name of the queue that a task came from; "" when it was called directly.

    In the routing key of a message that the broker delayed, it is the last part.
    """
    routing_key = (request.delivery_info or {}).get("routing_key") or ""
    return routing_key.rpartition(".")[2]


def fields_of(request: Any) -> dict[str, str]:
    """Return the fields of a task from its celery.app.task.Context."""
    return {
        "request_id": request.get("request_id") or fields.get().get("request_id") or request.id,
        "task": request.get("task"),
        "task_id": request.id,
        "queue": queue(request),
    }


@contextmanager
def task_fields(request: Any) -> Iterator[None]:
    """Add the fields of a task to the log lines of a block."""
    token = fields.set(fields_of(request))
    try:
        yield
    finally:
        fields.reset(token)


def add_request_id(headers: dict[str, Any], **kwargs: object) -> None:
    """Add the request ID to the message of a task that has none; a receiver of before_task_publish."""
    headers["request_id"] = (
        headers.get("request_id") or fields.get().get("request_id") or headers["id"]
    )


def task_started(task: Any, **kwargs: object) -> None:
    """Add the fields of a task to the log lines that follow; a receiver of task_prerun."""
    task.request.tokens = started.set(time.monotonic()), fields.set(fields_of(task.request))


def task_ended(task: Any, **kwargs: object) -> None:
    """Restore the fields that were set before the task; a receiver of task_postrun."""
    start, others = task.request.tokens
    started.reset(start)
    fields.reset(others)
