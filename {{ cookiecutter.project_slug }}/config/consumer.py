import logging
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.app.task import Context
from celery.worker import consumer
from django.conf import settings
from kombu import Message
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Entry

from core import logs

from . import broker
from .task import UnknownTask

logger = logging.getLogger(__name__)


class Consumer(consumer.Consumer):
    """
    The worker's consumer, which keeps tasks that it does not know, and sends events in batches.

    Celery's own deletes an unknown task. Events for Flower it sends after every turn of the event
    loop, about two messages a task: for short tasks that costs more than the tasks themselves.
    """

    pause = 0.5  # seconds that an event waits for others, at most
    # Seconds that an unknown task waits. In development the code that has it was perhaps saved just
    # now: this worker reloads, and one that stops returns what waits to the queue.
    patience = 60 if settings.DEBUG else 0
    connection_errors: tuple[type[Exception], ...]
    event_dispatcher: Any
    hub: Hub
    qos: Any
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

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Fail a task that no code is known for, in development after some patience."""
        if self.patience:
            logger.warning(
                "Unknown task %s: it waits up to %d s for this worker to reload.",
                message.headers.get("task"),
                self.patience,
            )
        self.qos.increment_eventually()  # what waits here must not keep others from being taken
        self.timer.call_after(
            self.patience, self.fail_unknown_task, (message, exc, self.connection)
        )

    def fail_unknown_task(self, message: Message, exc: Exception, connection: object) -> None:
        """
        Store a failure with all that is needed to send the task again, then acknowledge it.

        When that raises, the message stays unacknowledged, and the broker delivers it once more.
        """
        if connection is not self.connection:  # it is delivered once more already
            return
        self.qos.decrement_eventually()
        try:
            args, kwargs, embed = message.payload
            request: Any = Context(
                message.headers,
                args=args,
                kwargs=kwargs,
                hostname=self.hostname,
                delivery_info=message.delivery_info,
                **embed,
            )
        except Exception:  # not of Celery's second protocol, or not JSON: nothing to send again
            return super().on_unknown_task(None, message, exc)
        error = UnknownTask(f"unknown task {request.task}")
        with logs.within(request):
            logger.error("Task %s[%s] failed: %s", request.task, request.id, error)
        self.app.backend.mark_as_failure(request.id, error, request=request)
        message.ack_log_error(logger, self.connection_errors)
        if self.event_dispatcher:
            told = f"UnknownTask({request.task!r})"
            self.event_dispatcher.send("task-failed", uuid=request.id, exception=told)
        signals.task_unknown.send(
            sender=self, message=message, exc=exc, name=request.task, id=request.id
        )
