"""The tasks that wait in each queue."""

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


def connect() -> Connection:
    """Return a connection for `waiting`; the caller releases it."""
    # A broker that hangs is not waited for; Redis has this limit by itself.
    return current_app.connection_for_write(transport_options={"read_timeout": TIMEOUT})


def waiting(connection: Connection) -> dict[str, Waiting]:
    """
    Return the tasks that wait in each queue.

    Those that wait for a countdown, an eta, a retry or a rate limit are elsewhere. Raises kombu's
    OperationalError when the broker does not answer; the connection can be used again all the same.
    """
    connection.ensure_connection(max_retries=1, timeout=TIMEOUT)
    try:
        channel: Any = connection.default_channel
        # Declared as each producer does it, so that there is always an answer.
        declared: dict[str, Any] = {
            name: current_app.amqp.queues[name](channel).queue_declare() for name in settings.QUEUES
        }
        return {
            name: Waiting(queue.message_count, brokers.current().oldest(channel, name))
            for name, queue in declared.items()
        }
    except Exception:
        connection.release()
        raise
