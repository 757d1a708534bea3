"""
What differs between brokers: one module for each, selected by the scheme of CELERY_BROKER_URL.

Each module defines

- `queue(name)`: the queue as senders and workers declare it,
- `transport_options(visibility_timeout, patience)`: kombu's options, both in seconds,
- `EVENT_OPTIONS`: what differs from them on a worker's connection for events,
- `REMOTE_CONTROL`: whether workers can be asked, and send events,
- `URGENT`: the priority of a task that should be ahead of others,
- `address(connection)`, in `other` only: host and port when CELERY_BROKER_URL names none,
- `mark_redelivered(message)`: marks a message that is redelivered, where it does not say so by itself,
- `check_capacity()`: raises kombu's OperationalError when the broker is known to refuse new tasks,
- `result_database()`: the number of the database of results if an acknowledgement can store one, or None,
- `acknowledge_early(request, outcome, result)`: acknowledges a task in the child process that ran it, before
  the main process does, where that is possible; `request`: the dict that Celery passes to the child,
- `task_counts()`: what its acknowledgements have counted (metrics.py), or None when they do not,
- `memory()`: bytes that it uses, and its limit or 0; None when they are not known,
- `is_full()`: whether it is now; may raise OperationalError when the broker cannot be asked,
- `oldest(channel, queue)`: the age of the oldest task in seconds, None when that is not known,
- `AGE_UNKNOWN`: one sentence that says why not, "" when it is,
- `held(connection)`: how many tasks each queue of the broker holds, also a queue that the project no
  longer has; without those that workers have taken, or soon after,
- `DEAD_LETTERS`: the module in this folder whose functions `read` and `settle` show the messages that no worker
  could take, and send them again or drop them; "" where there are none,
- `dead_letters(connection)`: how many it holds; may raise OperationalError,
- `PURGE_COUNTS`: whether kombu returns how many tasks it deleted when it purges a queue,
- `exists(channel, queue)`: whether the broker knows a queue; ValueError, with one sentence, when tasks
  cannot be moved,
- `move_tasks(channel, old, new)`: moves all tasks from one queue to another, the oldest first; yields how
  many after each step. A task is always in one of the two, also when this process is killed.
"""

import functools
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any

from celery import current_app
from django.core.exceptions import ImproperlyConfigured
from kombu.transport import TRANSPORT_ALIASES

from stack.environment import env

MODULES = {
    "redis": "redis",
    "rediss": "redis",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "pyamqp": "rabbitmq",
}  # "other" for what else kombu knows
# What commands say when it does not.
NO_ANSWER = "The broker does not answer: " + (
    "is CELERY_BROKER_URL in .env right, and the server up?"
    if env("CELERY_BROKER_URL", default="")
    else "docker compose ps broker"
)


@dataclass(frozen=True)
class DeadLetter:
    """What a message that no worker could take says of its task, as far as it can be read."""

    key: str  # of this message; a task may be there more than once
    task_id: str
    task: str
    queue: str  # where it died
    reason: str
    at: datetime
    meta: dict[str, Any]  # args and kwargs, or body, as in celery/results.py


# Of a task, as it is stored with an acknowledgement: database, key, seconds until it expires, value.
Result = tuple[int, str, int, str]
# How a task ended: what to count, and of its run time the bucket, the sum and the microseconds.
Outcome = tuple[str, str, str, int]


def scheme(url: str) -> str:
    """Return the name that kombu has for a kind of broker, such as "sqs"."""
    return url.partition("://")[0].partition("+")[0]


@functools.cache
def module(url: str) -> Any:
    """Return the module for the broker at `url`; ImproperlyConfigured when kombu knows no such one."""
    kind = scheme(url)
    if kind not in MODULES and kind not in TRANSPORT_ALIASES:
        raise ImproperlyConfigured(
            f'CELERY_BROKER_URL starts with "{kind}", and kombu knows no such broker: see docs/broker.md.'
        )
    return import_module(f".{MODULES.get(kind, 'other')}", __name__)


def current() -> Any:
    """Return the module for the broker of the current app."""
    return module(current_app.conf.broker_url)


def dead_letters_of_current() -> Any:
    """Return the module that shows and settles its dead letters, None where there are none."""
    name = current().DEAD_LETTERS
    return import_module(f".{name}", __name__) if name else None
