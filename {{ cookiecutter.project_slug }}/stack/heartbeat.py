"""The heartbeat of this process: a file whose age stack/watchdog checks, and where its broker is."""

import threading
import time
from pathlib import Path

from celery import current_app
from kombu import Connection

from . import brokers

FILE = Path("/tmp/heartbeat")
BROKER = Path("/tmp/broker")


def write_broker(**kwargs: object) -> None:
    """Write where the broker is, as the settings name it; a receiver of worker_init and beat_init."""
    BROKER.write_text("".join(map(address, current_app.conf.broker_read_url.split(";"))))


def address(url: str) -> str:
    """Return a line with the host and the port of a broker, and "tls" or "plain"."""
    connection = Connection(url, ssl=current_app.conf.broker_use_ssl)
    if not connection.hostname:  # a service that is the same for all
        return brokers.current().address(connection)
    transport, tls = connection.transport, bool(connection.ssl)
    default = (tls and getattr(transport, "default_ssl_port", None)) or transport.default_port
    return f"{connection.hostname} {connection.port or default} {'tls' if tls else 'plain'}\n"


def touch(**kwargs: object) -> None:
    """Show that this process works; a receiver of heartbeat_sent."""
    FILE.touch()


def touch_until_the_end(**kwargs: object) -> None:
    """Go on from a thread while a worker's last tasks end: its event loop has stopped by then."""

    def keep_touching() -> None:
        while True:
            touch()
            time.sleep(5)

    threading.Thread(target=keep_touching, daemon=True).start()
