"""
Acknowledges a task in the child process that ran it, with the transport's own script.

The main process does so as soon as it hears of the end, and decides what happens next; but SIGKILL of a
worker in between lets the task run a second time. What the child sends closes most of that gap. Nothing
depends on it: it waits for no answer, and whichever of the two comes second changes nothing.
"""

import functools
import time
from typing import Any

from celery import current_app
from redis import RedisError

from . import Outcome, Result, redis_transport

PATIENCE = 5  # seconds without another attempt after an error
UNREAD = 10  # answers that Redis may owe


class Child:
    """A child process's own connection to the broker's Redis."""

    def __init__(self) -> None:
        """Begin without a connection."""
        self.connection: Any = None
        self.owed = 0
        self.not_before = 0.0

    def acknowledge(self, tag: str, outcome: Outcome, result: Result | None) -> bool:
        """Send the acknowledgement of a message, with its task's result; return whether it was sent."""
        if time.monotonic() < self.not_before:
            return False
        try:
            if self.connection is None:
                self.connect()
            self.read_answers()
            results = {tag: result} if result else {}
            settled = redis_transport.settlement([tag], {tag: outcome}, results)
            arguments = [*self.keys, self.owner, 0, 0, *settled]  # takes nothing, from no queue
            sha = redis_transport.SETTLE_SHA
            self.connection.send_command("EVALSHA", sha, len(self.keys), *arguments)
            self.owed += 1
        except Exception:  # whatever it is: the task is done, and the main process acknowledges it
            self.give_up()
            return False
        return True

    def connect(self) -> None:
        """Connect; load the script, which a Redis that was restarted has no longer."""
        with current_app.connection_for_read(transport_options=redis_transport.QUICK) as broker:
            broker.ensure_connection(max_retries=1, timeout=1)
            channel: Any = broker.default_channel
            self.keys, self.owner = channel.settlement_keys(), channel.owner
            self.connection = channel.pool.make_connection()  # which outlives the channel
        self.connection.connect()
        self.connection.send_command("SCRIPT", "LOAD", redis_transport.SETTLE)
        self.connection.read_response()

    def read_answers(self) -> None:
        """Read the answers that have come; RedisError for one that is an error, or too many missing."""
        while self.owed and self.connection.can_read(0):
            self.connection.read_response()
            self.owed -= 1
        if self.owed >= UNREAD:
            raise RedisError("Redis does not answer.")

    def give_up(self) -> None:
        """Leave it to the main process for some time."""
        if self.connection is not None:
            self.connection.disconnect()
        self.connection, self.owed = None, 0
        self.not_before = time.monotonic() + PATIENCE


@functools.cache
def child() -> Child:
    """Return this process's connection."""
    return Child()
