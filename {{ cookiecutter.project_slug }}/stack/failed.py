"""Tasks that failed, and dead letters: what they are, and sending them again or dropping them."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from celery import current_app
from kombu.exceptions import OperationalError

from . import brokers, logs
from .celery.results import Results, is_failure
from .celery.task import forget_redeliveries

logger = logging.getLogger(__name__)

ONLY_REDIS = "Failed tasks are known only if the results are in Redis."
GONE = "This task is not a failed one any more."
TAKEN = "{} has been sent again or dropped meanwhile."
LONGEST = 1000  # characters that are shown of arguments
MOST = 200  # dead letters that are shown
REASONS = {
    "delivery_limit": "It was delivered several times, and no worker finished it.",
    "expired": "It expired before a worker took it.",
    "rejected": "A worker rejected it.",
    "unreadable": "It is no message of Celery: it can be dropped, but not sent again.",
}


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


def ended(meta: dict[str, Any]) -> datetime:
    """Return when a task ended: text in Redis, a date in databases, both perhaps without a zone."""
    when = datetime.fromisoformat(str(meta["date_done"]))
    return when if when.tzinfo else datetime.fromisoformat(f"{when}Z")


def error(meta: dict[str, Any]) -> tuple[str, str]:
    """Return the type of the error of a failed task, and its text."""
    return type(meta["result"]).__name__, str(meta["result"])


def shorten(text: str, longest: int = LONGEST) -> str:
    """Return the beginning of a text, and how long it is."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


def arguments(meta: dict[str, Any]) -> dict[str, str]:
    """Return what is shown of the arguments: "args" and "kwargs", or the "body" that cannot be read."""
    if meta.get("body"):
        return {"body": shorten(str(meta["body"]))}
    message = meta.get("message", {})
    return {
        # What a producer has hidden stays hidden.
        name: shorten(
            message.get(f"{name}repr") or json.dumps(meta[name], default=str, ensure_ascii=False)
        )
        for name in ("args", "kwargs")
        if name in meta
    }


# What is shown ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A task that failed, or a dead letter."""

    id: str  # that of the task, or the key of the dead letter
    task_id: str
    task: str
    queue: str
    error: str  # its type; of a dead letter the reason
    text: str
    at: datetime
    arguments: dict[str, str]
    dead: bool = False
    worker: str = ""
    retries: int = 0
    traceback: str = ""
    not_run: list[tuple[str, str]] = field(default_factory=list)
    why_not: str = ""

    @property
    def kind(self) -> str:
        """Return what tasks of the same name, queue and error have in common."""
        names = json.dumps([self.dead, self.task, self.queue, self.error])
        return hashlib.sha256(names.encode()).hexdigest()[:16]


def of_task(task_id: str, meta: dict[str, Any]) -> Entry:
    """Return a task that failed."""
    name, text = error(meta)
    return Entry(
        id=task_id,
        task_id=task_id,
        task=meta["name"],
        queue=meta["queue"],
        error=name,
        text=shorten(text),
        at=ended(meta),
        arguments=arguments(meta),
        worker=meta.get("worker") or "",
        retries=meta.get("retries") or 0,
        traceback=(meta.get("traceback") or "")[-10 * LONGEST :],
        not_run=not_run(meta),
        why_not=why_not(task_id, meta),
    )


def of_letter(letter: Any) -> Entry:
    """Return a dead letter, a brokers.DeadLetter."""
    return Entry(
        id=letter.key,
        task_id=letter.task_id or letter.key,
        task=letter.task,
        queue=letter.queue,
        error=letter.reason,
        text=REASONS.get(letter.reason, ""),
        at=letter.at,
        arguments=arguments(letter.meta),
        dead=True,
    )


def tasks() -> Iterator[Entry]:
    """Yield the tasks that failed, the last one first; ValueError, with one sentence, if unknown."""
    backend = current_app.backend
    if not isinstance(backend, Results):
        raise ValueError(ONLY_REDIS)
    return (of_task(task_id, meta) for task_id, meta in backend.each_failed())


def letters() -> tuple[list[Entry], int]:
    """
    Return the oldest dead letters, the last one first, and how many there are in all.

    Raises kombu's OperationalError when the broker does not answer.
    """
    if not (dead_letters := brokers.dead_letters_of_current()):
        return [], 0
    found, count = dead_letters.read(of_letter, MOST)
    return sorted(found, key=lambda entry: entry.at, reverse=True), count


# What is done -------------------------------------------------------------------------------------


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
    backend.remove_taken(task_id)
    return True


@dataclass(frozen=True)
class Done:
    """What became of one of those that were to be sent again or dropped."""

    task: str
    task_id: str
    why_not: str = ""  # one sentence


def change_tasks(ids: Iterable[str], again: bool) -> Iterator[Done]:
    """
    Send tasks that failed again, or take them from the list; their results stay until they expire.

    Raises kombu's OperationalError when the broker does not accept one, ValueError as above.
    """
    backend = current_app.backend
    if not isinstance(backend, Results):
        raise ValueError(ONLY_REDIS)
    for task_id in ids:
        meta = backend.get_task_meta(task_id)
        if not is_failure(meta):
            yield Done("", task_id, GONE)
        elif again and (reason := why_not(task_id, meta)):
            yield Done(meta["name"], task_id, reason)
        elif again:
            sent = send(backend, task_id, meta)
            yield Done(meta["name"], task_id, "" if sent else TAKEN.format(task_id))
        else:
            dropped = backend.take_failed(task_id)
            backend.remove_taken(task_id)
            yield Done(meta["name"], task_id, "" if dropped else TAKEN.format(task_id))


def logged(changes: Iterable[Done], again: bool, user: str) -> Iterator[Done]:
    """Yield the same, and log who did it."""
    for done in changes:
        if not done.why_not:
            logger.info(
                "User %s %s %s[%s].",
                user,
                "sent again" if again else "dropped",
                done.task,
                done.task_id,
                extra={"user": user, "task": done.task, "task_id": done.task_id},
            )
        yield done


def change_letters(
    chosen: Callable[[Entry], bool], again: bool, seconds: float = float("inf")
) -> Iterator[Done]:
    """
    Send dead letters again, or delete them; after so many seconds the rest stays.

    Raises kombu's OperationalError when the broker does not answer or accept one.
    """
    if not (dead_letters := brokers.dead_letters_of_current()):
        return
    found = dead_letters.settle(lambda letter: chosen(of_letter(letter)), again, seconds)
    for letter, reason in found:
        entry = of_letter(letter)
        if again and not reason:
            forget_redeliveries(letter.task_id)
        reason = reason and f"{entry.task_id} is not sent again: {reason}."
        yield Done(entry.task, entry.task_id, reason)
