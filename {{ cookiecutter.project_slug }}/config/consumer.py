from collections.abc import Callable
from typing import Any

from celery.worker import consumer
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Entry

from . import broker


class Consumer(consumer.Consumer):
    """
    The worker's consumer, which sends the events for Flower in batches.

    Celery's own sends what it has after every turn of the event loop, about two messages a task:
    for short tasks that costs more than the tasks themselves.
    """

    pause = 0.5  # seconds that an event waits for others, at most
    hub: Hub
    _flush_events: Callable[[], Any]
    next_flush: Entry | None = None

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Any:
        """Connect for events, of which the broker need not confirm each one."""
        connection = self.app.connection_for_write(
            url=url, heartbeat=heartbeat, transport_options=broker.EVENT_OPTIONS
        )
        return self.ensure_connected(connection)

    def on_send_event_buffered(self) -> None:  # type: ignore[override]
        """Flush soon, unless that is due already."""
        if self.next_flush is None or self.next_flush.canceled:
            self.next_flush = self.hub.call_later(self.pause, self.flush_events)

    def flush_events(self) -> None:
        """Send the events that wait."""
        self.next_flush = None
        self._flush_events()
