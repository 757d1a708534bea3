"""
RabbitMQ's dead letters: shown, sent again to their queues, or dropped.

RabbitMQ shows a message only by delivering it. So each one is taken and not acknowledged, and put back at
the end, or by RabbitMQ itself when this process is killed.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from typing import Any

from amqp.exceptions import ResourceLocked
from celery import current_app
from kombu import Connection
from kombu.exceptions import OperationalError
from kombu.serialization import prepare_accept_content

from stack.celery.results import hidden

from . import DeadLetter, rabbitmq

NAME = rabbitmq.DEAD_QUEUE.name
LOCK = f"{NAME}.lock"  # a queue that belongs to a connection, and ends with it
PATIENCE = 5  # seconds for one's turn, and for the broker to confirm a message
BUSY = "Another process works on the dead letters. Try again in a moment."


class Hand:
    """What this process has taken out of the queue."""

    def __init__(self, channel: Any) -> None:
        """Declare the queue, and count what is there."""
        self.channel = channel
        self.held = 0
        rabbitmq.DEAD_QUEUE(channel).queue_declare()
        self.count = self.waiting()

    def waiting(self) -> int:
        """Return how many are in the queue, without those in a hand."""
        return self.channel.queue_declare(NAME, passive=True).message_count

    def take(self) -> Iterator[tuple[DeadLetter, Any]]:
        """Take those that were there, the oldest first; yield each, and its message."""
        for _ in range(self.count):
            if not (message := self.channel.basic_get(NAME)):
                return
            self.held += 1
            yield describe(self.channel.message_to_python(message)), message

    def remove(self, message: Any) -> None:
        """Delete a message."""
        self.channel.basic_ack(message.delivery_tag)
        self.held -= 1

    def send_again(self, letter: DeadLetter, message: Any) -> None:
        """
        Send a message to its queue, and delete it here once RabbitMQ has it there.

        It is a new attempt: it has all its retries, and has not expired.
        """
        headers = message.properties.get("application_headers") or {}
        headers = {name: value for name, value in headers.items() if "death" not in name}
        message.properties["application_headers"] = headers | {"expires": None, "retries": 0}
        self.channel.basic_publish(
            message,
            exchange=letter.queue,  # it has the same name
            routing_key=letter.queue,
            mandatory=True,
            confirm_timeout=PATIENCE,
        )
        self.remove(message)

    def put_back(self) -> None:
        """Put the rest back, and wait until it is there: the next one must see all."""
        self.channel.basic_recover(requeue=True)
        end = time.monotonic() + PATIENCE
        while self.waiting() < self.held and time.monotonic() < end:
            time.sleep(0.01)


@contextmanager
def alone(connection: Connection) -> Iterator[Hand]:
    """
    Yield a hand for dead letters while no other process has one: it would not see what this one holds.

    Raises kombu's OperationalError when the broker does not answer or another is busy for long. The
    connection is closed at the end.
    """
    end = time.monotonic() + PATIENCE
    try:
        connection.ensure_connection(max_retries=1, timeout=PATIENCE)
        while True:
            channel: Any = connection.channel()
            try:
                channel.queue_declare(LOCK, exclusive=True)
                break
            except ResourceLocked as error:
                if time.monotonic() > end:
                    raise OperationalError(BUSY) from error
                time.sleep(0.05)
        hand = Hand(channel)
        try:
            yield hand
        finally:
            if channel.is_open:
                hand.put_back()
    except (*connection.channel_errors, *connection.connection_errors) as error:
        raise OperationalError(str(error)) from error
    finally:
        connection.release()


def describe(message: Any) -> DeadLetter:
    """Return what a message says."""
    headers = message.headers or {}
    # The last one first: a task with a countdown has also "died" in the queue where it waited for that.
    death = (headers.get("x-death") or [{}])[0]
    queue, at = str(death.get("queue") or ""), death.get("time")
    task_id = str(headers.get("id") or "")
    body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
    message.accept = prepare_accept_content(current_app.conf.accept_content)
    try:
        args, kwargs, _ = message.decode()
        meta = {"args": args, "kwargs": kwargs, "message": hidden(headers, args, kwargs)}
    except Exception:  # whatever somebody has put there
        meta = {"args": None, "body": body.decode(errors="replace")}
    return DeadLetter(
        key=hashlib.sha256(f"{task_id} {queue} {at} ".encode() + body).hexdigest()[:16],
        task_id=task_id,
        task=str(headers.get("task") or "no task"),
        queue=queue,
        reason=str(death.get("reason") or "unknown"),
        at=datetime.fromisoformat(f"{at or '1970-01-01 00:00:00'}Z"),
        meta=meta,
    )


def connect() -> Connection:
    """Return a connection that waits until the broker confirms what it sends."""
    return current_app.connection_for_write()


def read(view: Callable[[DeadLetter], Any], limit: int) -> tuple[list[Any], int]:
    """
    Return `view` of each of the oldest dead letters, and how many there are.

    Raises kombu's OperationalError.
    """
    with alone(connect()) as hand:
        return [view(letter) for letter, _ in islice(hand.take(), limit)], hand.count


def settle(
    chosen: Callable[[DeadLetter], bool], again: bool, seconds: float = float("inf")
) -> Iterator[tuple[DeadLetter, str]]:
    """
    Send those that are chosen again, or drop them; yield each, with "" or why it is not sent.

    Ends after so many seconds: the rest stays. A message is always in one of the two queues, also when
    this process is killed, and then perhaps in both. Raises kombu's OperationalError.
    """
    if again:
        rabbitmq.check_capacity()
    end = time.monotonic() + seconds
    with alone(connect()) as hand:
        exists = functools.cache(functools.partial(rabbitmq.exists, hand.channel))
        for letter, message in hand.take():
            if time.monotonic() > end:
                return
            if not chosen(letter):
                continue
            why_not = ""
            if not again:
                hand.remove(message)
            elif not letter.queue or not exists(letter.queue):
                why_not = f'the broker has no queue "{letter.queue}"'
            else:
                hand.send_again(letter, message)
            yield letter, why_not
