"""
Redis' dead letters: what was in a queue and no worker could read; shown, or dropped.

redis_transport.py keeps them in a list, the newest first. They are no messages, so none can be sent again.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from . import DeadLetter, redis

NOT_A_MESSAGE = "no worker can read it"


def describe(entry: bytes) -> DeadLetter:
    """Return what is known of one."""
    found = json.loads(entry)
    return DeadLetter(
        key=hashlib.sha256(entry).hexdigest()[:16],
        task_id="",
        task="no task",
        queue=found["queue"],
        reason="unreadable",
        at=datetime.fromisoformat(found["at"]),
        meta={"args": None, "body": f"{found['body']} ({found['error']})"},
    )


def read(view: Callable[[DeadLetter], Any], limit: int) -> tuple[list[Any], int]:
    """
    Return `view` of each of the oldest dead letters, and how many there are.

    Raises kombu's OperationalError.
    """

    def ask(channel: Any) -> tuple[list[bytes], int]:
        with channel.plain.pipeline() as pipe:
            pipe.lrange(channel.dead_letters, -limit, -1)
            pipe.llen(channel.dead_letters)
            return pipe.execute()

    entries, count = redis.ask(ask)
    return [view(describe(entry)) for entry in reversed(entries)], count


def settle(
    chosen: Callable[[DeadLetter], bool], again: bool, seconds: float = float("inf")
) -> Iterator[tuple[DeadLetter, str]]:
    """
    Drop those that are chosen; yield each, with "" or why it is not sent again.

    Ends after so many seconds: the rest stays. Raises kombu's OperationalError.
    """
    end = time.monotonic() + seconds
    found = redis.ask(lambda channel: channel.plain.lrange(channel.dead_letters, 0, -1))
    for entry in reversed(found):
        if time.monotonic() > end:
            return
        if not chosen(letter := describe(entry)):
            continue
        if again:
            yield letter, NOT_A_MESSAGE
        elif redis.ask(drop(entry)):
            yield letter, ""


def drop(entry: bytes) -> Callable[[Any], int]:
    """Return a function that deletes one, and returns how many it found."""
    return lambda channel: channel.plain.lrem(channel.dead_letters, -1, entry)
