import logging
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.app.task import Context
from celery.concurrency.asynpool import AsynPool
from celery.worker import consumer
from django.conf import settings
from kombu import Message
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Entry

from stack import brokers, logs, metrics

from .task import InvalidMessage, UnknownTask

logger = logging.getLogger(__name__)


class Consumer(consumer.Consumer):
    """
    The worker's consumer: it keeps unknown and unreadable tasks, forgets none that began, and sends
    events in batches.

    Celery's own deletes an unknown task, and ends at an unreadable one. When it stops, it forgets
    tasks that a child has begun just now. It sends events for Flower in every iteration of the event
    loop, about two messages per task: for short tasks that costs more than the tasks themselves.
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

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Connect again, as Celery does; what still runs is not returned to its queue meanwhile."""
        transport: Any = self.connection and self.connection.transport
        for channel in getattr(transport, "channels", None) or ():
            channel.do_restore = False
        super().on_connection_error_after_connected(exc)

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
        prefork = isinstance(self.pool._pool, AsynPool)
        if not prefork:
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
        """Fail a task that has waited long enough for its code."""
        if connection is not self.connection:  # it has been redelivered already
            return
        self.qos.decrement_eventually()
        name, task_id = message.headers.get("task"), message.headers.get("id")
        if not name:  # of Celery's first protocol
            return super().on_unknown_task(None, message, exc)
        self.fail(message, UnknownTask(f"unknown task {name}"))
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=name, id=task_id)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """
        Return what takes each message: a check, then Celery's own handler.

        A body or headers of another form than a task's would end the worker, and the next one, too.
        """
        take = super().create_task_handler(*args, **kwargs)
        mark_redelivered = brokers.current().mark_redelivered

        def check_and_take(message: Message) -> None:
            mark_redelivered(message)
            error = unreadable(message)
            if error is None:
                take(message)
            else:
                self.on_invalid_task(None, message, error)

        return check_and_take

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Fail a task whose message cannot be read."""
        names = (message.headers.get("id"), message.headers.get("task"))
        if not all(name and isinstance(name, str) for name in names):  # nothing to store it under
            return super().on_invalid_task(body, message, exc)
        self.fail(message, InvalidMessage(str(exc)))

    def fail(self, message: Message, error: Exception) -> None:
        """
        Store a failure with all that is needed to send the task again, then acknowledge it.

        When that raises, the message stays unacknowledged, and the broker redelivers it.
        """
        headers = message.headers
        if unreadable(message):
            args, kwargs, embed = None, None, {"body": repr(message.body)}
            headers = {name: headers[name] for name in ("id", "task")}
        else:
            args, kwargs, embed = message.payload
        request: Any = Context(
            headers,
            args=args,
            kwargs=kwargs,
            hostname=self.hostname,
            delivery_info=message.delivery_info,
            **embed,
        )
        with logs.task_fields(request):
            logger.error("Task %s[%s] failed: %s", request.task, request.id, error)
        self.app.backend.mark_as_failure(request.id, error, request=request)
        name = request.task if request.task in self.app.tasks else metrics.UNKNOWN
        queue = logs.queue(request)
        metrics.count_task(message, queue, name, metrics.FAILED, None, acknowledged=False)
        message.ack_log_error(logger, self.connection_errors)
        if self.event_dispatcher:
            exception = f"{type(error).__name__}({request.task!r})"
            self.event_dispatcher.send("task-failed", uuid=request.id, exception=exception)


def unreadable(message: Message) -> Exception | None:
    """Return what is wrong with a task's message, or None; its body is decoded once only."""
    if not (message.headers or {}).get("task"):
        return None  # of Celery's first protocol, or not a task: Celery finds out
    try:
        match message.payload:
            case [list() | tuple(), dict(), dict()]:
                return malformed(message.headers)
    except Exception as error:  # whatever a decoder raises
        return error
    return InvalidMessage("No [args, kwargs, options]")


def malformed(headers: dict[str, Any]) -> Exception | None:
    """Return what is wrong with a task's headers, or None; Celery itself finds a wrong date."""
    match headers:
        case {"id": str(), "task": str()}:
            pass
        case _:
            return InvalidMessage("The header id or task is missing or is not text")
    match headers.get("retries"), headers.get("timelimit"):
        case (int() | None, None | [] | [int() | float() | None, int() | float() | None]):
            return None
    return InvalidMessage("The header retries or timelimit is not what Celery writes")
