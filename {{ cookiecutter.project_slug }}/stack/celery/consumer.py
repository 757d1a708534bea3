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

from stack import brokers, logs

from .task import UnknownTask

logger = logging.getLogger(__name__)


class Consumer(consumer.Consumer):
    """
    The worker's consumer: it keeps unknown tasks, forgets none that began, and sends events in batches.

    Celery's own deletes an unknown task. When it stops, it forgets tasks that a child has begun just
    now. It sends events for Flower in every iteration of the event loop, about two messages per task:
    for short tasks that costs more than the tasks themselves.
    """

    pause = 0.5  # seconds that an event waits for others
    # Seconds that an unknown task waits. In development its code was perhaps saved just now: this
    # worker reloads, and a worker that stops returns what it holds to the queue.
    patience = 60 if settings.DEBUG else 0
    connection_errors: tuple[type[Exception], ...]
    event_dispatcher: Any
    pool: Any
    hub: Hub
    qos: Any
    _flush_events: Callable[[], Any]
    next_flush: Entry | None = None

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Any:
        """Return a connection for events, which the broker need not confirm."""
        connection = self.app.connection_for_write(
            url=url, heartbeat=heartbeat, transport_options=brokers.current().EVENT_OPTIONS
        )
        return self.ensure_connected(connection)

    def on_send_event_buffered(self) -> None:  # type: ignore[override]
        """Flush soon, unless a flush is scheduled already."""
        if self.next_flush is None or self.next_flush.canceled:
            self.next_flush = self.hub.call_later(self.pause, self.flush_events)

    def flush_events(self) -> None:
        """Send the buffered events."""
        self.next_flush = None
        self._flush_events()

    def on_close(self) -> None:
        """
        Close as Celery does, but keep the tasks that were written to a child.

        Celery forgets a task whose child has not reported yet that it began. The child runs it all
        the same: nobody would acknowledge it, so that it ran twice, and the child would wait for 30
        seconds before it ends, because nobody reads the result:
        https://github.com/celery/celery/issues/3802, https://github.com/celery/celery/pull/6863
        """
        if not self.pool.flush:  # only that of prefork has it
            super().on_close()
            return
        pool = self.pool._pool
        jobs = dict(pool._cache)
        super().on_close()
        for number, job in jobs.items():
            if job._write_to and job._write_to._is_alive() and not job.ready():
                pool._cache[number] = job
                pool._busy_workers.add(job._write_to.inqW_fd)

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Fail a task that this worker has no code for, in development after some time."""
        if self.patience:
            logger.warning(
                "Unknown task %s: it waits up to %d s for this worker to reload.",
                message.headers.get("task"),
                self.patience,
            )
        self.qos.increment_eventually()  # what waits here must not block others
        self.timer.call_after(
            self.patience, self.fail_unknown_task, (message, exc, self.connection)
        )

    def fail_unknown_task(self, message: Message, exc: Exception, connection: object) -> None:
        """
        Store a failure with all that is needed to send the task again, then acknowledge it.

        When that raises, the message stays unacknowledged, and the broker redelivers it.
        """
        if connection is not self.connection:  # it has been redelivered already
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
        with logs.task_fields(request):
            logger.error("Task %s[%s] failed: %s", request.task, request.id, error)
        self.app.backend.mark_as_failure(request.id, error, request=request)
        message.ack_log_error(logger, self.connection_errors)
        if self.event_dispatcher:
            exception = f"UnknownTask({request.task!r})"
            self.event_dispatcher.send("task-failed", uuid=request.id, exception=exception)
        signals.task_unknown.send(
            sender=self, message=message, exc=exc, name=request.task, id=request.id
        )
