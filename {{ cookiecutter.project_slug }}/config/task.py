"""What every task of this project can do: @shared_task and @app.task make one of these."""

from datetime import datetime
from typing import Any

from celery import Signature
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, NotRegistered, QueueNotFound, Reject
from celery.result import AsyncResult
from celery.utils.log import get_task_logger
from django.core.cache import cache
from django.utils import timezone
from kombu.exceptions import OperationalError

from core import logs

from . import broker

CONFIRM_TIMEOUT = 10  # seconds that a broker may take to confirm a task, if it does that

logger = get_task_logger(__name__)


class TooManyDeliveries(Exception):
    """The task was begun several times and never ended: it seems to kill whatever runs it."""


class UnknownTask(NotRegistered):
    """The worker has no code for the task: another release has, or the name is wrong."""

    def __str__(self) -> str:
        """Return the message as it is; a KeyError puts quotes around it."""
        return str(self.args[0])


class Task(DjangoTask):
    """Celery's task, made safe where the settings alone are not enough."""

    Request = "config.request:Request"
    max_deliveries = 5  # after which a task that kills its worker fails instead of going on forever

    def before_start(self, task_id: str, args: tuple, kwargs: dict) -> None:
        """Raise TooManyDeliveries, or Ignore when the task has yet to wait."""
        if (self.request.delivery_info or {}).get("redelivered"):
            deliveries = 1 + count_redelivery(task_id)
            if deliveries > self.max_deliveries:
                task = f"{self.name}[{task_id}]"
                raise TooManyDeliveries(f"{task} was begun {deliveries - 1} times and never ended.")
        # Some brokers cannot keep a task for long; it then waits in steps.
        due = self.request.get("due")
        if due and datetime.fromisoformat(due) > timezone.now():
            again = self.signature_from_request(
                args=args,
                kwargs=kwargs,
                eta=datetime.fromisoformat(due),
                retries=self.request.retries,
            )
            try:
                again.apply_async()
            except Exception as error:  # the broker is away: the message stays as it is
                raise Reject(error, requeue=True) from error
            raise Ignore

    def apply_async(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """
        Send this task; raise kombu's OperationalError when the broker or the results are away.

        It is the one error to catch. Celery raises others too, such as RuntimeError when Redis ends
        between two attempts to prepare for the result.
        """
        sends_itself_again = self.request.id and kwargs.get("task_id") == self.request.id
        if not sends_itself_again and not self.app.conf.task_always_eager:
            broker.check_room()
        kwargs.setdefault("confirm_timeout", CONFIRM_TIMEOUT)
        try:
            return super().apply_async(*args, **kwargs)
        except QueueNotFound:  # a KeyError, which kombu takes for a lost connection to Redis
            raise
        except (RuntimeError, *self.app.connection_for_write().connection_errors) as error:  # type: ignore[misc]
            if self.app.conf.task_always_eager:  # the task ran just now: its own error
                raise
            raise OperationalError(str(error)) from error

    def signature_from_request(self, *args: Any, **kwargs: Any) -> Signature:
        """
        Do as Celery does, but name the queue: a retry goes where the task came from.

        Celery passes exchange and routing key on, but a message that the broker itself is to delay
        goes by the queue.
        """
        request = kwargs.get("request") or (args[0] if args else None) or self.request
        queue = logs.queue(request)
        if queue in self.app.amqp.queues:
            kwargs.setdefault("queue", queue)
        return super().signature_from_request(*args, **kwargs)

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """Do as Celery does, but keep the message when the retry cannot be sent."""
        try:
            return super().retry(*args, **kwargs)
        except Reject as rejection:
            raise Reject(rejection.reason, requeue=True) from rejection  # type: ignore[attr-defined]


def count_redelivery(task_id: str) -> int:
    """Count one more redelivery of a task; return how many there were, 0 when the cache is away."""
    key = f"redeliveries:{task_id}"
    try:
        cache.add(key, 0, timeout=24 * 3600)
        return cache.incr(key)
    except Exception:  # whatever it is, the task must not fail for it
        logger.warning("The cache is away: the redelivery of %s is not counted.", task_id)
        return 0
