"""
Any broker that kombu knows and that has no module of its own, such as Amazon SQS or Zookeeper.

docs/broker.md says what is not possible with them. Where kombu's transport has no fanout, and SQS has
none, workers take no remote control and send no events.
"""

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from kombu import Connection, Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES, resolve_transport

from stack import brokers

TRANSPORT_ALIASES["zookeeper"] = "stack.brokers.zookeeper_transport:Transport"
SCHEME = brokers.scheme(settings.CELERY_BROKER_URL)
EVENT_OPTIONS: dict[str, object] = {}  # nothing differs
LONGEST = 12 * 3600  # seconds that SQS hides a message


def has_fanout() -> bool:
    """Return whether a message can reach several workers; False when what kombu needs is missing."""
    try:
        transport: Any = resolve_transport(SCHEME)
    except ImportError:  # a check names the package
        return False
    return "fanout" in transport.implements.exchange_type


REMOTE_CONTROL = has_fanout()
URGENT = 0  # kombu's default


def queue(name: str) -> Queue:
    """Return the queue `name`, with an exchange of its own."""
    return Queue(name, Exchange(name), routing_key=name)


def transport_options(visibility_timeout: int, patience: int) -> dict[str, object]:
    """
    Return kombu's options; those for SQS have no meaning elsewhere.

    `visibility_timeout`: seconds after which a message that nobody acknowledged is redelivered. It must
    exceed the longest task. `patience`: seconds that a process waits for its first connection.
    """
    options: dict[str, object] = {
        "visibility_timeout": min(visibility_timeout, LONGEST),
        "connect_retries_timeout": patience,
    }
    if SCHEME.lower() == "sqs":
        options |= {
            "wait_time_seconds": 10,  # of one request, which a message ends
            "polling_interval": 0.1,  # seconds until the next; also a busy worker's, until it looks again
            # boto3's own limits are minutes. Flower and a shell wait for a message longer than 10 s.
            "client-config": {
                "connect_timeout": min(patience, 5),
                "read_timeout": patience,
                "retries": {"total_max_attempts": 2},
            },
        }
    return options


def mark_redelivered(message: Any) -> None:
    """Mark a message that SQS has delivered before, which SQS only counts."""
    received = message.delivery_info.get("sqs_message") or {}
    if int(received.get("Attributes", {}).get("ApproximateReceiveCount", 1)) > 1:
        message.delivery_info["redelivered"] = True


def address(connection: Connection) -> str:
    """Return what heartbeat.address() does when the URL has no host: that of SQS in its region."""
    if SCHEME.lower() != "sqs":
        return ""
    import boto3  # type: ignore[import-not-found]

    transport: Any = connection.transport
    region = (connection.transport_options or {}).get("region") or boto3.Session().region_name
    client = boto3.client("sqs", region_name=region or transport.Channel.default_region)
    return f"{urlsplit(client.meta.endpoint_url).hostname} 443 tls\n"


def check_capacity() -> None:
    """Do nothing: a full broker is not known."""


def result_database() -> None:
    """Return None: results are elsewhere."""


def acknowledge_early(*arguments: object) -> None:
    """Do nothing: it is for the connection that received the message."""


def task_counts() -> None:
    """Return None: the worker counts tasks, in the cache."""


def memory() -> None:
    """Return None: it is not known."""


def is_full() -> bool:
    """Return False: it is not known."""
    return False


AGE_UNKNOWN = (
    "This broker reports neither how long a task has waited nor queues that are not in QUEUES."
)
PURGE_COUNTS = SCHEME.lower() != "sqs"  # there kombu returns the sum of ten looks


def oldest(channel: Any, queue: str) -> float | None:
    """Return None: it is not known."""
    return None


def held(connection: Connection) -> dict[str, int]:
    """Return nothing: such a broker may hold queues of others."""
    return {}


DEAD_LETTERS = ""


def dead_letters(connection: Connection) -> int:
    """Return 0: there are none."""
    return 0


def exists(channel: Any, queue: str) -> bool:
    """Raise ValueError: no tasks can be moved, so there is no `move_tasks`."""
    raise ValueError(
        "With this broker no tasks can be moved: put the queue into QUEUES again until it is empty."
    )
