"""The class of every task: @shared_task and @app.task make instances of it."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

from celery import Celery, Signature, states
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, NotRegistered, QueueNotFound, Reject
from celery.result import AsyncResult
from celery.utils.log import get_task_logger
from django.conf import settings
from django.core.cache import cache
from kombu.exceptions import OperationalError

from stack import brokers, logs, metrics
from stack.environment import SERVICE

from .defaults import SOFT

# Seconds that RabbitMQ may take to confirm a task.
CONFIRM_TIMEOUT = 5 if SERVICE == "web" else 10

logger = get_task_logger(__name__)


class TooManyDeliveries(Exception):
    """The task was started several times and never ended: it seems to kill its workers."""


class AlreadyDone(Ignore):
    """The redelivered task has succeeded before: its worker died before it could acknowledge it."""


class UnknownTask(NotRegistered):
    """The worker has no code for the task: another release has, or the name is wrong."""

    def __str__(self) -> str:
        """Return the message as it is; a KeyError puts quotes around it."""
        return str(self.args[0])


class InvalidMessage(Exception):
    """The message of the task cannot be read: it is damaged, or not written by Celery."""


def time_limits(hard: float | None, soft: float | None) -> tuple[float | None, float | None]:
    """Return the hard and the soft time limit in seconds; if one is given, the other follows."""
    if hard and not soft:
        soft = SOFT * hard
    elif soft and not hard:
        hard = max(soft, min(soft / SOFT, settings.TASK_TIME_LIMIT))
    return hard, soft


def check_time_limits(hard: float | None, soft: float | None) -> None:
    """Raise ValueError, with one sentence, for a limit that is too long."""
    if soft and hard and soft > hard:
        raise ValueError(f"soft_time_limit is {soft:g} s, and time_limit only {hard:g} s.")
    if hard and hard > settings.TASK_TIME_LIMIT:
        raise ValueError(
            f"time_limit is {hard:g} s, and TASK_TIME_LIMIT only {settings.TASK_TIME_LIMIT} s: "
            "raise that in .env, because a worker that stops waits for its tasks that long."
        )


def counts_refusals(send: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function so that each OperationalError it raises is counted, once, for /metrics."""

    @wraps(send)
    def counting(*args: Any, **kwargs: Any) -> Any:
        try:
            return send(*args, **kwargs)
        except OperationalError as error:
            if not getattr(error, "is_counted", False):
                metrics.count_refused()
                error.is_counted = True  # type: ignore[attr-defined]
            raise

    return counting


class Task(DjangoTask):
    """Celery's task, made safe where the settings alone are not enough."""

    Request = "stack.celery.request:Request"
    max_deliveries = 5  # then a task that kills its worker fails
    # "bind" takes these two from the settings itself, once it knows what the task sets.
    from_config = tuple(pair for pair in DjangoTask.from_config if "time_limit" not in pair[0])

    @classmethod
    def bind(cls, app: Celery) -> Celery:
        """Bind the task to its app; if it sets one time limit, the other follows."""
        app = super().bind(app)
        hard, soft = time_limits(cls.time_limit, cls.soft_time_limit)
        cls.time_limit = hard or app.conf.task_time_limit  # type: ignore[assignment]
        cls.soft_time_limit = soft or app.conf.task_soft_time_limit  # type: ignore[assignment]
        return app

    def before_start(self, task_id: str, args: tuple, kwargs: dict) -> None:
        """Raise TooManyDeliveries for a task that seems to kill its workers, AlreadyDone for one that is done."""
        # The limits that hold, for the task to read: its message has only those of the call.
        request: Any = self.request
        request.time_limit = request.time_limit or self.time_limit
        request.soft_time_limit = request.soft_time_limit or self.soft_time_limit
        if (self.request.delivery_info or {}).get("redelivered"):
            deliveries = 1 + count_redelivery(task_id)
            if deliveries > self.max_deliveries:
                task = f"{self.name}[{task_id}]"
                raise TooManyDeliveries(
                    f"{task} was started {deliveries - 1} times and never ended."
                )
            if self.was_done(task_id):
                logger.warning("%s[%s] was done when its worker died.", self.name, task_id)
                raise AlreadyDone

    def was_done(self, task_id: str) -> bool:
        """
        Return whether a redelivered task has succeeded, and nothing remains to be done for it.

        worker_deduplicate_successful_tasks would also skip the part of a chord whose worker died after
        it had stored the result and before it counted the part: that chord would wait forever.
        """
        request: Any = self.request
        if request.chord or request.ignore_result or self.ignore_result:
            return False
        try:
            return self.app.backend.get_state(task_id) == states.SUCCESS
        except Exception:  # whatever it is: then it runs once more
            logger.warning("The result backend is unavailable: %s may run twice.", task_id)
            return False

    @counts_refusals
    def apply_async(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """
        Send this task; OperationalError when the broker or the result backend is unavailable.

        It is kombu's, and the one error to catch. Celery raises others too, such as RuntimeError
        when Redis ends between two attempts to subscribe to the result. ValueError for a time limit
        above TASK_TIME_LIMIT.
        """
        # None: the worker takes the task's own, which may differ from those of this process.
        hard, soft = time_limits(kwargs.get("time_limit"), kwargs.get("soft_time_limit"))
        check_time_limits(hard, soft)
        kwargs |= {"time_limit": hard, "soft_time_limit": soft}
        is_retry = self.request.id and kwargs.get("task_id") == self.request.id
        if not is_retry:
            self.check_capacity()
        kwargs.setdefault("confirm_timeout", CONFIRM_TIMEOUT)
        if patience := self.app.conf.broker_pool_acquire_timeout:
            policy = kwargs.get("retry_policy") or {}
            kwargs["retry_policy"] = {"errback": give_up_after(patience)} | policy
        try:
            return super().apply_async(*args, **kwargs)
        except QueueNotFound:  # a KeyError, which kombu counts as a lost connection to Redis
            raise
        except (RuntimeError, *self.app.connection_for_write().connection_errors) as error:  # type: ignore[misc]
            if self.app.conf.task_always_eager:  # the task ran just now: its own error
                raise
            raise OperationalError(str(error)) from error

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Do what apply_async_on_commit does, with the task's arguments only."""
        self.apply_async_on_commit(args, kwargs)

    @counts_refusals
    def apply_async_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """
        Send this task when the transaction is committed.

        OperationalError at once, so that nothing is saved, when the broker is known to refuse tasks.
        """
        self.check_capacity()
        super().apply_async_on_commit(*args, **kwargs)

    def check_capacity(self) -> None:
        """Raise OperationalError when the broker is known to refuse tasks."""
        if not self.app.conf.task_always_eager:
            brokers.current().check_capacity()

    def signature_from_request(self, *args: Any, **kwargs: Any) -> Signature:
        """
        Add the queue to what Celery does: a retry goes where the task came from.

        Celery passes exchange and routing key on, but a message that the broker itself delays is
        routed by the queue.
        """
        request = kwargs.get("request") or (args[0] if args else None) or self.request
        queue = logs.queue(request)
        if queue in self.app.amqp.queues:
            kwargs.setdefault("queue", queue)
        return super().signature_from_request(*args, **kwargs)

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """Retry as Celery does, but keep the message when the retry cannot be sent."""
        try:
            return super().retry(*args, **kwargs)
        except Reject as rejection:
            raise Reject(rejection.reason, requeue=True) from rejection  # type: ignore[attr-defined]


def give_up_after(seconds: float) -> Callable[[Exception, float], None]:
    """
    Return what kombu calls between two attempts: it ends them after so many seconds.

    kombu limits their number, but each attempt on a broker that is silent takes several seconds.
    """
    end = time.monotonic() + seconds

    def check(error: Exception, interval: float) -> None:
        """Raise OperationalError when it is too late for another one."""
        if time.monotonic() > end:
            raise OperationalError(str(error)) from error

    return check


def count_redelivery(task_id: str) -> int:
    """Count a redelivery of a task; return how many there were, 0 when the cache is unavailable."""
    key = f"redeliveries:{task_id}"
    try:
        cache.add(key, 0, timeout=24 * 3600)
        return cache.incr(key)
    except Exception:  # whatever it is, the task must not fail for it
        logger.warning("The cache is unavailable: a redelivery of %s is not counted.", task_id)
        return 0


def forget_redeliveries(task_id: str) -> None:
    """Count the redeliveries of a task from the start again; nothing when the cache is unavailable."""
    with suppress(Exception):
        cache.delete(f"redeliveries:{task_id}")
