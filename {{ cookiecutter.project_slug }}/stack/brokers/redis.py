"""Redis as the broker: accepted tasks survive a killed worker and a restarted Redis."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from celery import current_app
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.transport import redis, virtual
from redis import RedisError, WatchError

logger = logging.getLogger(__name__)

EVENT_OPTIONS: dict[str, object] = {}  # nothing differs


def queue(name: str) -> Queue:
    """Return the queue `name`, with an exchange of its own."""
    return Queue(name, Exchange(name), routing_key=name)


def transport_options(visibility_timeout: int, patience: int) -> dict[str, object]:
    """
    Return kombu's options for Redis.

    `visibility_timeout`: seconds after which a message that nobody acknowledged is redelivered. It
    must exceed the longest task, with the time that it waits in the worker, or such a task runs
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
        "socket_timeout": 5,  # a broker that hangs or is cut off must not block the event loop
        "socket_keepalive": True,
    }


class QoS(redis.QoS):
    """
    kombu's count of the messages that a worker holds, in which a late answer of Redis leaks none.

    When Redis does not answer an acknowledgement within socket_timeout, kombu's own class counts
    the message as one that the worker still holds. After as many as its prefetch count the worker
    takes no more, for good, although it is healthy and answers remote control.
    """

    channel: Any
    unconfirmed: set[str] = set()  # of this process: it outlives a connection
    _remove_from_indices: Callable[..., Any]

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message; without an answer from Redis, again in restore_visible."""
        try:
            super().ack(delivery_tag)
        except self.channel.connection_errors as error:
            logger.warning("Redis did not confirm yet that %s is done: %r", delivery_tag, error)
            virtual.QoS.ack(self, delivery_tag)
            self.unconfirmed.add(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a message; without an answer from Redis it is redelivered as from a dead worker."""
        try:
            super().reject(delivery_tag, requeue)
        except self.channel.connection_errors:
            virtual.QoS.ack(self, delivery_tag)
            raise

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Repeat unconfirmed acknowledgements, then restore expired messages; every 5 seconds."""
        for delivery_tag in tuple(self.unconfirmed):
            self._remove_from_indices(delivery_tag).execute()
            self.unconfirmed.remove(delivery_tag)
        super().restore_visible(*args, **kwargs)


redis.Channel.QoS = QoS

CAPACITY = 0.9  # of Redis' memory is for producers; the workers need the rest, for their own notes
PROBE = {"socket_timeout": 1, "socket_connect_timeout": 1}  # seconds
checked = 0.0  # when the memory was checked last, by time.monotonic()
full = False


def check_capacity() -> None:
    """
    Raise kombu's OperationalError when Redis is so full that only workers may write.

    At its limit Redis refuses every write; a worker then loses the task that it cannot record, and
    ends, so that nothing frees memory. Each process that sends checks once per second.
    """
    global checked, full
    if time.monotonic() > checked + 1:
        checked, full = time.monotonic(), False
        connection = current_app.connection_for_write(transport_options=PROBE)
        # When Redis is unavailable, the producer finds out by itself.
        with suppress(OperationalError, RedisError), connection:
            connection.ensure_connection(max_retries=1, timeout=1)
            channel: Any = connection.default_channel
            with channel.conn_or_acquire() as client:
                memory = client.info("memory")
            full = 0 < memory["maxmemory"] * CAPACITY < memory["used_memory"]
    if full:
        raise OperationalError("Redis accepts no tasks: its memory is nearly full.")


AGE_UNKNOWN = ""  # nothing to explain: the function below knows it


def oldest(channel: Any, queue: str) -> float | None:
    """Return the seconds since the oldest task in `queue` was sent, or None when there is none."""
    with channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
        for step in channel.priority_steps:
            pipe.lindex(channel._q_for_pri(queue, step), -1)  # the end that workers take from
        heads = [json.loads(head)["headers"] for head in pipe.execute() if head]
    sent = [head["sent_at"] for head in heads if "sent_at" in head]
    return max(0, time.time() - min(sent)) if sent else None


def held(connection: Connection) -> dict[str, int]:
    """Return how many tasks each queue holds."""
    channel: Any = connection.default_channel
    found: Counter[str] = Counter()
    with channel.conn_or_acquire() as client:
        keys = [key.decode() for key in client.scan_iter(count=1000, _type="list")]
        for key in keys:
            queue = key.partition(channel.sep)[0]  # the rest is the priority
            if "pidbox" not in queue and exists(channel, queue):  # replies to remote control
                found[queue] += client.llen(key)
    return found


def exists(channel: Any, queue: str) -> bool:
    """Return whether somebody has declared a queue; each has an exchange of its name."""
    with channel.conn_or_acquire() as client:
        return bool(client.exists(channel.keyprefix_queue % queue))


STEP = 100  # tasks that are moved at once


def move_tasks(channel: Any, old: str, new: str) -> Iterator[int]:
    """Move all tasks from one queue to another, the oldest first; yield how many after each step."""
    moved = 0
    with channel.conn_or_acquire() as client:
        for priority in channel.priority_steps:
            source = channel._q_for_pri(old, priority)
            target = channel._q_for_pri(new, priority)
            while count := move_some(client, source, target, new):
                moved += count
                yield moved


def move_some(client: Any, source: str, target: str, queue: str) -> int:
    """Move the oldest tasks between two lists in one transaction; return how many, 0 at the end."""
    while True:
        with client.pipeline() as pipe, suppress(WatchError):  # a worker took one: look again
            pipe.watch(source)
            found = pipe.lrange(source, -STEP, -1)  # workers take from this end
            if found:
                pipe.multi()
                pipe.lpush(target, *(readdressed(message, queue) for message in reversed(found)))
                pipe.ltrim(source, 0, -len(found) - 1)
                pipe.execute()
            return len(found)


def readdressed(message: bytes, queue: str) -> str:
    """Return a message with another queue, to which a worker that stops then returns it."""
    content = json.loads(message)
    content["properties"]["delivery_info"] |= {"exchange": queue, "routing_key": queue}
    return json.dumps(content)
