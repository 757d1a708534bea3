"""Redis as the broker: accepted tasks survive a killed worker and a restarted Redis."""

import functools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from billiard import current_process
from celery import current_app
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES
from redis import RedisError, TimeoutError, WatchError

from stack.environment import env

from . import Outcome, Result, redis_child, redis_transport

# For redis:// and rediss:// from here on; kombu's own works with the same keys.
OWN_TRANSPORT = env("REDIS_TRANSPORT", default="stack") != "kombu"
if OWN_TRANSPORT:
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{redis_transport.__name__}:Transport"

EVENT_OPTIONS: dict[str, object] = {}  # nothing differs
REMOTE_CONTROL = True
URGENT = 0  # the first, which all have that set none


def queue(name: str) -> Queue:
    """Return the queue `name`, with an exchange of its own."""
    return Queue(name, Exchange(name), routing_key=name)


def transport_options(visibility_timeout: int, patience: int) -> dict[str, object]:
    """
    Return kombu's options for Redis.

    `visibility_timeout`: seconds after which a message that nobody acknowledged is redelivered, by the
    stack's transport only that of a paused worker or of one of kombu's. It must exceed the longest task,
    with the time that it waits in the worker, or such a task runs twice:
    https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/redis.html#visibility-timeout
    `patience`: seconds that a process waits for its first connection.
    """
    return {
        "node_name": env("CELERY_WORKER_HOSTNAME", default=""),
        "visibility_timeout": visibility_timeout,
        # Look for such messages every few seconds, in every worker.
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "connect_retries_timeout": patience,
        "socket_connect_timeout": min(patience, 5),
        # A broker that hangs or is cut off must not block the event loop, nor a request.
        "socket_timeout": min(patience, 5),
        "socket_keepalive": True,
    }


def mark_redelivered(message: Any) -> None:
    """Do nothing: the transport marks it."""


CAPACITY = 0.9  # of Redis' memory is for producers; the workers need the rest, for their own notes
checked = 0.0  # when the memory was checked last, by time.monotonic()
refusal = ""  # what was found then


def check_capacity() -> None:
    """
    Raise kombu's OperationalError when Redis is so full that only workers may write, or is silent.

    At its limit Redis refuses every write; a worker then loses the task that it cannot record, and
    ends, so that nothing frees memory. Each process that sends checks once per second; during a check
    its other threads go by the previous one.
    """
    global checked, refusal
    if time.monotonic() > checked + 1:
        checked = time.monotonic()
        refusal = find_refusal()
    if refusal:
        raise OperationalError(refusal)


def find_refusal() -> str:
    """Return why Redis accepts no tasks, or ""."""
    try:
        return "Redis accepts no tasks: its memory is nearly full." if is_full() else ""
    except (OperationalError, RedisError) as error:
        # One that is not there may be back in a second: the producer tries a few times.
        silent = isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError)
        return "Redis does not answer." if silent else ""


def is_full() -> bool:
    """Return whether Redis has no memory for new tasks; OperationalError when it is unavailable."""
    used, limit = memory()
    return 0 < limit * CAPACITY < used


def memory() -> tuple[int, int]:
    """Return the bytes that Redis uses, and their limit or 0; OperationalError when it is unavailable."""

    def info(channel: Any) -> Any:
        with channel.conn_or_acquire() as client:
            return client.info("memory")

    found = ask(info)
    return found["used_memory"], found["maxmemory"]


def task_counts() -> dict[bytes, bytes] | None:
    """Return what the transport has counted, None when it is kombu's; raises as `memory` does."""
    if not OWN_TRANSPORT:
        return None
    return ask(lambda channel: channel.counts())


# Connections that have asked, and are not in use: to connect costs more than to ask.
kept: list[Connection] = []
os.register_at_fork(after_in_child=kept.clear)


def ask(question: Callable[[Any], Any]) -> Any:
    """Return what `question` gets from Redis by a channel; OperationalError when it does not answer at once."""
    try:
        with suppress(IndexError):  # none is kept
            return ask_by(kept.pop(), question)
        connection = current_app.connection_for_write(transport_options=redis_transport.QUICK)
        connection.ensure_connection(max_retries=1, timeout=1)
        return ask_by(connection, question)
    except RedisError as error:
        raise OperationalError(str(error)) from error


def ask_by(connection: Connection, question: Callable[[Any], Any]) -> Any:
    """Return the same by a connection, which is kept when it works."""
    try:
        found = question(connection.default_channel)
    except BaseException:
        connection.release()
        raise
    kept.append(connection)
    return found


@functools.cache
def result_database() -> int | None:
    """Return the number of the results' database if it is in the same Redis, and the transport ours."""
    messages, results = (
        urlsplit(url)._replace(path="")
        for url in (current_app.conf.broker_url, current_app.conf.result_backend or "")
    )
    path = urlsplit(current_app.conf.result_backend or "").path.strip("/") or "0"
    return int(path) if OWN_TRANSPORT and messages == results and path.isdigit() else None


def acknowledge_early(request: dict[str, Any], outcome: Outcome, result: Result | None) -> None:
    """Acknowledge a task in the child process that ran it, with the stack's transport."""
    # Not in a pool of threads, which has no such process.
    if OWN_TRANSPORT and current_process().daemon:
        redis_child.child().acknowledge(request["properties"]["delivery_tag"], outcome, result)


AGE_UNKNOWN = ""  # nothing to explain: the function below knows it
PURGE_COUNTS = True


def oldest(channel: Any, queue: str) -> float | None:
    """Return the seconds since the oldest task in `queue` was sent, or None when there is none."""
    with channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
        for step in channel.priority_steps:
            pipe.lindex(channel._q_for_pri(queue, step), -1)  # the end that workers take from
        sent = []
        for head in filter(None, pipe.execute()):
            with suppress(ValueError, LookupError, TypeError):  # what is no message, or has no time
                sent.append(json.loads(head)["headers"]["sent_at"])
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


DEAD_LETTERS = "redis_dead_letters" if OWN_TRANSPORT else ""


def dead_letters(connection: Connection) -> int:
    """Return how many messages the stack's transport could not read, and has set aside."""
    channel: Any = connection.default_channel
    return channel.plain.llen(channel.dead_letters) if OWN_TRANSPORT else 0


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
