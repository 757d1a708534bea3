"""Redis as the broker: accepted tasks survive a killed worker and a restarted Redis."""

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from celery import current_app
from celery.signals import before_task_publish
from django.utils import timezone
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.transport import redis, virtual
from redis import RedisError

from .environment import env

logger = logging.getLogger(__name__)

PASSWORD = env("BROKER_PASSWORD", default="")

URL = env("CELERY_BROKER_URL", default=f"redis://:{PASSWORD}@broker:6379/0")
RESULT_BACKEND = env("CELERY_RESULT_BACKEND", default=f"redis://:{PASSWORD}@broker:6379/1")


def queue(name: str) -> Queue:
    """Declare the queue `name`, with an exchange of its own."""
    return Queue(name, Exchange(name), routing_key=name)


def transport_options(visibility_timeout: int, patience: int) -> dict[str, object]:
    """
    Give kombu's options for Redis.

    `visibility_timeout`: seconds after which a message that nobody acknowledged goes to another
    worker. It must exceed the longest task, with what it waits in the worker, or such a task runs
    twice: https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/redis.html#visibility-timeout
    `patience`: seconds that a process waits for its first connection.
    """
    return {
        "visibility_timeout": visibility_timeout,
        # Look for such messages every few seconds, in every worker.
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "connect_retries_timeout": patience,
        "socket_connect_timeout": 5,
        "socket_timeout": 5,  # a broker that is paused or cut off must not hold up the event loop
        "socket_keepalive": True,
    }


class QoS(redis.QoS):
    """
    kombu's account of the messages that a worker has, in which a late answer leaks none.

    When Redis does not answer an acknowledgement within socket_timeout, kombu's own counts the
    message as one that the worker still has. After as many as it may have it takes no more, for
    good, though it is healthy and answers to remote control.
    """

    channel: Any
    owed: set[str] = set()  # of this process: it outlives a connection
    _remove_from_indices: Callable[..., Any]

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message; without an answer of Redis, once more in restore_visible."""
        try:
            super().ack(delivery_tag)
        except self.channel.connection_errors as error:
            logger.warning("Redis has yet to confirm that %s is done: %r", delivery_tag, error)
            virtual.QoS.ack(self, delivery_tag)
            self.owed.add(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a message; without an answer of Redis it comes back as from a dead worker."""
        try:
            super().reject(delivery_tag, requeue)
        except self.channel.connection_errors:
            virtual.QoS.ack(self, delivery_tag)
            raise

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Acknowledge what is owed, then look for what others had for too long; every 5 seconds."""
        for delivery_tag in tuple(self.owed):
            self._remove_from_indices(delivery_tag).execute()
            self.owed.remove(delivery_tag)
        super().restore_visible(*args, **kwargs)


redis.Channel.QoS = QoS

EVENT_OPTIONS: dict[str, object] = {}  # nothing differs

ROOM = 0.9  # of Redis' memory is for senders; the rest is the workers', to note what they take
LOOK = {"socket_timeout": 1, "socket_connect_timeout": 1}  # seconds
looked = 0.0  # at the memory, by time.monotonic()
full = False


def check_room() -> None:
    """
    Raise kombu's OperationalError when Redis is so full that only workers may write.

    At its limit Redis refuses every write; a worker then loses the task that it cannot note, and
    ends, so that nothing makes room. Each process that sends looks once a second.
    """
    global looked, full
    if time.monotonic() > looked + 1:
        looked, full = time.monotonic(), False
        connection = current_app.connection_for_write(transport_options=LOOK)
        # When Redis is away, whoever sends finds out.
        with suppress(OperationalError, RedisError), connection:
            connection.ensure_connection(max_retries=1, timeout=1)
            channel: Any = connection.default_channel
            with channel.conn_or_acquire() as client:
                memory = client.info("memory")
            full = 0 < memory["maxmemory"] * ROOM < memory["used_memory"]
    if full:
        raise OperationalError("Redis takes no tasks now: its memory is nearly full.")


AGE_UNKNOWN = ""  # nothing to explain: the function below knows it


def oldest(channel: Any, queue: str) -> float | None:
    """Return the seconds since the oldest task in `queue` was sent, or None when there is none."""
    with channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
        for step in channel.priority_steps:
            pipe.lindex(channel._q_for_pri(queue, step), -1)  # the end that workers take from
        heads = [json.loads(head)["properties"] for head in pipe.execute() if head]
    sent = [head["timestamp"] for head in heads if "timestamp" in head]
    return max(0, time.time() - min(sent)) if sent else None


@before_task_publish.connect
def note_the_time(properties: dict[str, object], **kwargs: object) -> None:
    """Put the time of sending, in seconds since 1970, where AMQP has it: for the function above."""
    properties["timestamp"] = int(time.time())


@before_task_publish.connect
def wait_in_steps(headers: dict[str, Any], **kwargs: object) -> None:
    """
    Cut a long countdown, eta or retry delay into steps; config/task.py sends the task once more
    after each.

    A worker takes such a task at once and keeps it until it is due. With 50 s to wait and a
    visibility timeout of 20 s it would come back twice, and run three times.
    """
    headers.pop("due", None)
    if eta := headers.get("eta"):
        options = current_app.conf.broker_transport_options
        step = timezone.now() + timedelta(seconds=options["visibility_timeout"] / 4)
        if datetime.fromisoformat(eta) > step:
            headers |= {"due": eta, "eta": step.isoformat()}
