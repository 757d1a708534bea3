"""The tasks that wait in each queue."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery import current_app
from django.conf import settings
from kombu import Connection

from . import brokers

TIMEOUT = 3  # seconds


@dataclass(frozen=True)
class Waiting:
    """Tasks that a queue holds, and the age of the oldest in seconds where the broker knows it."""

    tasks: int
    oldest: float | None


def check_name(name: str, error: type[Exception] = ValueError) -> None:
    """Raise `error`, with one sentence, unless there is a queue `name`."""
    if name not in settings.QUEUES:
        raise error(f'There is no queue "{name}", but {", ".join(settings.QUEUES)}.')


def number(tasks: int) -> str:
    """Return "1 task" or "N tasks"."""
    return "1 task" if tasks == 1 else f"{tasks} tasks"


def connect() -> Connection:
    """Return a connection for the functions below; the caller releases it."""
    # A broker that hangs is not waited for; Redis has this limit by itself.
    options = {"read_timeout": TIMEOUT} | brokers.current().EVENT_OPTIONS
    return current_app.connection_for_write(transport_options=options)


@contextmanager
def reached(connection: Connection) -> Iterator[Any]:
    """
    Yield the channel of a connection, once the broker has answered.

    Raises kombu's OperationalError when it does not; after any error the connection can be used again.
    """
    connection.ensure_connection(max_retries=1, timeout=TIMEOUT)
    try:
        yield connection.default_channel
    except Exception:
        connection.release()
        raise


def waiting(connection: Connection) -> dict[str, Waiting]:
    """
    Return the tasks that wait in each queue.

    Those that wait for a countdown, an eta, a retry or a rate limit are elsewhere. Raises kombu's
    OperationalError when the broker does not answer; the connection can be used again all the same.
    """
    with reached(connection) as channel:
        # Declared as each producer does it, so that there is always an answer.
        declared: dict[str, Any] = {
            name: current_app.amqp.queues[name](channel).queue_declare() for name in settings.QUEUES
        }
        return {
            name: Waiting(queue.message_count, brokers.current().oldest(channel, name))
            for name, queue in declared.items()
        }


def stranded(connection: Connection) -> dict[str, int]:
    """
    Return how many tasks are in queues that are not in QUEUES, so that no worker consumes them.

    Raises kombu's OperationalError when the broker does not answer.
    """
    with reached(connection):
        held = brokers.current().held(connection)
    return {
        name: tasks for name, tasks in sorted(held.items()) if tasks and name not in settings.QUEUES
    }


def move(connection: Connection, old: str, new: str) -> Iterator[int]:
    """
    Move what waits in one queue to another, which is in QUEUES; yield how many after each step.

    Raises ValueError, with one sentence, when there is no queue `old`, and kombu's OperationalError
    when the broker does not answer.
    """
    with reached(connection) as channel:
        if not brokers.current().exists(channel, old):
            raise ValueError(f'The broker has no queue "{old}".')
        current_app.amqp.queues[new](channel).declare()
        yield from brokers.current().move_tasks(channel, old, new)
