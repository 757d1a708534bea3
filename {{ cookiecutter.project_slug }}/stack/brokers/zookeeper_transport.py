"""kombu's transport for Zookeeper, which connects when it says so, and ends what it began."""

from typing import Any

from kazoo.handlers.threading import KazooTimeoutError  # type: ignore[import-not-found]
from kombu.transport import zookeeper


class Channel(zookeeper.Channel):
    """kombu's, with a client from its start to its end; each is a session of the server's."""

    def __init__(self, connection: Any, **options: Any) -> None:
        """Connect at once: kombu does so with the first message, when nobody expects an error."""
        super().__init__(connection, **options)
        self._client = self._open()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Return what is not acknowledged, then end the session."""
        super().close()
        self._client.stop()
        self._client.close()


class Transport(zookeeper.Transport):
    """kombu's, with the error that kazoo raises when the server does not answer."""

    Channel = Channel
    connection_errors = (*zookeeper.Transport.connection_errors, KazooTimeoutError)
