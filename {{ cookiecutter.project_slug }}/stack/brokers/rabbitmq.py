"""RabbitMQ as the broker, with quorum queues."""

import base64
import http
import http.client
import json
import ssl
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

from celery import current_app
from celery.app import base
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES, pyamqp
from kombu.transport.base import StdChannel
from kombu.transport.native_delayed_delivery import calculate_routing_key

from stack.environment import env

# Messages that no worker could take.
DEAD_QUEUE = Queue(
    "dead.letters",
    queue_arguments={
        "x-queue-type": "quorum",
        "x-delivery-limit": -1,  # reading a message is a delivery, too
        "x-max-length": 10_000,  # then the oldest is dropped
    },
)


class TLSTransport(pyamqp.SSLTransport):
    """kombu's for amqps://, with ?ssl_ca_certs=… and the like in the URL, and the server's name verified."""

    def establish_connection(self) -> Any:
        """Connect with py-amqp's names for what kombu reads in the URL."""
        client: Any = self.client
        given, client.ssl = client.ssl, tls(client.ssl)
        try:
            return super().establish_connection()
        finally:
            client.ssl = given


TRANSPORT_ALIASES["amqps"] = "stack.brokers.rabbitmq:TLSTransport"


def tls(given: Any) -> dict[str, Any]:
    """Return py-amqp's options of TLS for those of kombu, which are True when there are none."""
    options = {
        name if name == "ssl_version" else name.removeprefix("ssl_"): value
        for name, value in (given if isinstance(given, dict) else {}).items()
    }
    verify = options.pop("check_hostname", True) and options.get("cert_reqs") != ssl.CERT_NONE
    # None stands for the host in the URL. Without this py-amqp verifies no name.
    return ({"server_hostname": None} if verify else {}) | options


class WorkQueue(Queue):
    """A queue that is always declared together with the one for dead letters."""

    def queue_declare(
        self, nowait: bool = False, passive: bool = False, channel: StdChannel | None = None
    ) -> str | None:
        """Declare both."""
        DEAD_QUEUE(channel or self.channel).queue_declare()
        return super().queue_declare(nowait, passive, channel)


def queue(name: str) -> Queue:
    """
    Return the queue `name`, with an exchange of its own.

    A quorum queue survives a restart of the broker and counts deliveries, so that a task that kills
    its workers becomes a dead letter: https://www.rabbitmq.com/docs/quorum-queues
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
            "x-dead-letter-exchange": "",  # the default exchange: it routes by the queue's name
            "x-dead-letter-routing-key": DEAD_QUEUE.name,
            # Kept here until it is safe there, which requires the second line.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )


def transport_options(visibility_timeout: int, patience: int) -> dict[str, object]:
    """
    Return kombu's options for RabbitMQ.

    `visibility_timeout` does not apply: RabbitMQ redelivers a message as soon as the connection of
    its worker ends. `patience`: seconds that a process waits for its first connection.
    """
    return {
        "confirm_publish": True,  # a task is accepted when the broker says so
        "connect_retries_timeout": patience,
        "on_blocked": Refuse(),
        "read_timeout": 5,  # seconds; a full broker does not even confirm a close
    }


REST = 15  # seconds in which nothing is sent after RabbitMQ has reported that it is full
FULL = "RabbitMQ accepts no tasks: its memory or its disk is full."
blocked = -float("inf")  # when it reported that last, by time.monotonic()


def delay(countdown: int, routing_key: str) -> str:
    """
    Return the routing key for a delay in seconds, of one at least.

    Celery rounds a countdown down and then refuses 0: "countdown must be a positive number". A retry
    after half a second would so be delivered again and again, until it is a failed task.
    """
    return calculate_routing_key(max(1, countdown), routing_key)


base.calculate_routing_key = delay  # type: ignore[attr-defined]


class Refuse:
    """A callable instead of a function, so that `celery inspect stats` can report it as JSON."""

    def __call__(self, reason: str) -> None:
        """
        Raise kombu's OperationalError in a producer that RabbitMQ would block until it has capacity.

        What this producer had sent just before may still run: https://www.rabbitmq.com/docs/alarms
        """
        global blocked
        blocked = time.monotonic()
        raise OperationalError(FULL)

    def __json__(self) -> str:
        """Return its name; kombu's JSON encoder calls this."""
        return "refuse"


def check_capacity() -> None:
    """Raise the same at once for the next producers: on that connection they would block, too."""
    if time.monotonic() < blocked + REST:
        raise OperationalError(FULL)


# A worker must not wait for the broker to confirm what only Flower reads.
EVENT_OPTIONS: dict[str, object] = {"confirm_publish": False, "on_blocked": None}
REMOTE_CONTROL = True
URGENT = 9  # ahead of tasks without one: https://www.rabbitmq.com/docs/quorum-queues#priorities


def mark_redelivered(message: Any) -> None:
    """Do nothing: RabbitMQ marks it."""


AGE_UNKNOWN = "RabbitMQ does not report how long a task has waited without delivering it."
PURGE_COUNTS = True


def oldest(channel: Any, queue: str) -> float | None:
    """Return None: reading a message's date would count as one of its deliveries."""
    return None


# The port of the plugin that lists queues, plain and with TLS; AMQP cannot.
MANAGEMENT = env.int("RABBITMQ_MANAGEMENT_PORT", default=0)
TIMEOUT = 3  # seconds


def management_api(connection: Connection, timeout: float) -> http.client.HTTPConnection:
    """Return a connection to the management API; with TLS where the broker is reached by TLS."""
    host = connection.hostname or ""
    if not isinstance(connection.transport, TLSTransport):
        return http.client.HTTPConnection(host, MANAGEMENT or 15672, timeout=timeout)
    options = tls(connection.ssl)
    context = ssl.create_default_context(cafile=options.get("ca_certs"))
    if "server_hostname" not in options:
        context.check_hostname = False
        context.verify_mode = options.get("cert_reqs", ssl.CERT_REQUIRED)
    port = MANAGEMENT or 15671
    return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)


def ask(connection: Connection, path: str, timeout: float = TIMEOUT) -> tuple[int, Any]:
    """Return status and JSON of a page of the management API; OperationalError without an answer."""
    login = base64.b64encode(f"{connection.userid}:{connection.password}".encode()).decode()
    management = management_api(connection, timeout)
    try:
        management.request("GET", f"/api/{path}", headers={"Authorization": f"Basic {login}"})
        answer = management.getresponse()
        return answer.status, json.load(answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise OperationalError(f"RabbitMQ's management does not answer: {error!r}") from error
    finally:
        management.close()


def result_database() -> None:
    """Return None: results are elsewhere."""


def acknowledge_early(*arguments: object) -> None:
    """Do nothing: it is for the connection that received the message."""


def task_counts() -> None:
    """Return None: the worker counts tasks, in the cache."""


def memory() -> None:
    """Return None: it is not known."""


def is_full() -> bool:
    """Return whether RabbitMQ's memory or disk is full; False when its management does not answer."""
    try:
        # Less than /readyz waits: a firewall may drop what is sent there.
        status, _ = ask(current_app.connection_for_read(), "health/checks/local-alarms", timeout=2)
    except OperationalError:  # a service that is managed by others need not have it
        return False
    return status == http.HTTPStatus.SERVICE_UNAVAILABLE


def held(connection: Connection) -> dict[str, int]:
    """Return how many tasks each queue held a few seconds ago, with those that workers have taken."""
    vhost = urllib.parse.quote(connection.virtual_host or "/", safe="")
    status, queues = ask(connection, f"queues/{vhost}?columns=name,messages,arguments")
    if status != http.HTTPStatus.OK:
        raise OperationalError(f"RabbitMQ does not list its queues: {queues}")
    return {
        queue["name"]: queue.get("messages", 0)
        for queue in queues
        # Those of the function `queue`, not Celery's own for delays and remote control.
        if queue["arguments"].get("x-dead-letter-routing-key") == DEAD_QUEUE.name
    }


DEAD_LETTERS = "rabbitmq_dead_letters"


def dead_letters(connection: Connection) -> int:
    """Return how many there are, or were a few seconds ago, with those that are being shown."""
    vhost = urllib.parse.quote(connection.virtual_host or "/", safe="")
    try:
        _, found = ask(connection, f"queues/{vhost}/{DEAD_QUEUE.name}?columns=messages")
        return found.get("messages", 0)
    except OperationalError:  # a service that is managed by others need not have this
        channel: Any = connection.default_channel
        DEAD_QUEUE(channel).queue_declare()
        return channel.queue_declare(DEAD_QUEUE.name, passive=True).message_count


def exists(channel: Any, queue: str) -> bool:
    """Return whether there is a queue."""
    with channel.connection.channel() as other:  # an error closes it
        try:
            other.queue_declare(queue, passive=True)
        except channel.connection.channel_errors:
            return False
    return True


STEP = 100  # tasks that are moved at once


def move_tasks(channel: Any, old: str, new: str) -> Iterator[int]:
    """
    Move all tasks from one queue to another, the oldest first; yield how many after each step.

    The connection must be one with EVENT_OPTIONS: a channel has either transactions or confirms.
    """
    moved = 0
    channel.tx_select()
    while True:
        before = moved
        while moved < before + STEP and (message := channel.basic_get(old)):
            channel.basic_publish(message, exchange=new, routing_key=new)
            channel.basic_ack(message.delivery_tag)
            moved += 1
        if moved == before:
            return
        channel.tx_commit()
        yield moved
