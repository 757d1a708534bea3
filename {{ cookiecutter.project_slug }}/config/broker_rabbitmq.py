"""RabbitMQ as the broker: quorum queues; results stay in Redis."""

import time
from typing import Any

from celery.contrib.migrate import State, move
from kombu import Exchange, Message, Queue
from kombu.exceptions import OperationalError
from kombu.transport.base import StdChannel

from .environment import env

PASSWORD = env("BROKER_PASSWORD", default="")
CACHE_PASSWORD = env("CACHE_PASSWORD", default="")

URL = env("CELERY_BROKER_URL", default=f"amqp://app:{PASSWORD}@broker:5672//")
RESULT_BACKEND = env("CELERY_RESULT_BACKEND", default=f"redis://:{CACHE_PASSWORD}@cache:6379/1")


# Where messages end up that no worker could take; docs/broker.md tells what to do with them.
DEAD_LETTERS = Queue(
    "dead.letters",
    queue_arguments={
        "x-queue-type": "quorum",
        "x-delivery-limit": -1,  # looking at a message is a delivery, too
        "x-max-length": 10_000,  # then the oldest goes
    },
)


class WorkQueue(Queue):
    """A queue that is never declared without the one for its dead letters."""

    def queue_declare(
        self, nowait: bool = False, passive: bool = False, channel: StdChannel | None = None
    ) -> str | None:
        """Declare both."""
        DEAD_LETTERS(channel or self.channel).queue_declare()
        return super().queue_declare(nowait, passive, channel)


def queue(name: str) -> Queue:
    """
    Declare the queue `name`, with an exchange of its own.

    A quorum queue survives a restart of the broker and counts deliveries, so that a task which
    kills its worker is a dead letter in the end: https://www.rabbitmq.com/docs/quorum-queues
    Tasks with a countdown or eta wait in the broker, which takes a topic exchange:
    https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/rabbitmq.html#using-quorum-queues
    """
    return WorkQueue(
        name,
        Exchange(name, type="topic"),
        routing_key=name,
        queue_arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": 5,
            "x-dead-letter-exchange": "",  # the one that knows every queue by its name
            "x-dead-letter-routing-key": DEAD_LETTERS.name,
            # Kept here until it is safe there, which takes the second line.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )


def transport_options(visibility_timeout: int, patience: int) -> dict[str, object]:
    """
    Give kombu's options for RabbitMQ.

    `visibility_timeout` is in seconds and of no use here: RabbitMQ hands a message to another
    worker as soon as the connection of the first one ends. `patience`: seconds that a process waits
    for its first connection.
    """
    return {
        "confirm_publish": True,  # a task is accepted when the broker says so
        "connect_retries_timeout": patience,
        "on_blocked": refuse,
        "read_timeout": 5,  # seconds; a full broker does not even answer who takes leave
    }


REST = 15  # seconds in which nothing is sent after RabbitMQ has said that it is full
FULL = "RabbitMQ takes no tasks now: its memory or its disk is full."
blocked = -float("inf")  # when it said so last, by time.monotonic()


def refuse(reason: str) -> None:
    """
    Raise kombu's OperationalError for a sender that RabbitMQ would let wait until it has room.

    It may still do what this sender had sent just before: https://www.rabbitmq.com/docs/alarms
    """
    global blocked
    blocked = time.monotonic()
    raise OperationalError(FULL)


def check_room() -> None:
    """Raise the same at once for those who come next: on that connection they would wait, too."""
    if time.monotonic() < blocked + REST:
        raise OperationalError(FULL)


# What differs for events: a worker must not wait for the broker to confirm what only Flower reads.
EVENT_OPTIONS: dict[str, object] = {"confirm_publish": False, "on_blocked": None}


def send_back() -> State:
    """Move each dead letter back to the queue it came from; the State's `filtered` counts them."""

    def origin(body: object, message: Message) -> tuple[str, str]:
        queue = message.headers["x-first-death-queue"]
        return queue, queue  # the exchange has the same name

    # The types do not know that it takes queues, too. After 5 s without a further one it is done.
    return move(origin, source=[DEAD_LETTERS], timeout=5)  # type: ignore[list-item]


AGE_UNKNOWN = "RabbitMQ does not tell how long a task has waited without handing it out."


def oldest(channel: Any, queue: str) -> float | None:
    """Return None: a task that is taken for its date and put back has one delivery less to go."""
    return None
