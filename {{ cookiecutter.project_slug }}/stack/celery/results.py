"""
The result backend: it also stores which tasks failed, and what they were called with.

Where results are in the broker's Redis, the child process that runs a task does not store what it
returned: the main process does, in one step with the acknowledgement. So there is no moment in which
one of the two is missing, and no task waits until its result is on the disk.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any

from celery import current_app, states
from celery.app import trace
from celery.app.task import Context, get_actual_ignore_result  # type: ignore[attr-defined]
from celery.backends.base import DisabledBackend
from celery.backends.redis import RedisBackend
from celery.backends.rpc import RPCBackend
from celery.utils.saferepr import saferepr

from stack import activity, brokers, logs, metrics

from .task import Task

FAILED = "failed"  # ids in the order of their failures, beside the results themselves
TAKEN = "failed.taken"  # those that somebody is about to send again, and when that began
LONGEST = 60  # seconds that this takes; then who began it was killed
# Two who want the same task: one of them gets it.
TAKE = """
if redis.call('zrem', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('zadd', KEYS[2], ARGV[2], ARGV[1])
return 1
"""
KEPT = 1000
LONG_ENOUGH = 0.005  # seconds that a task took, for its child to acknowledge it, too
LARGEST = 4096  # characters of a result; a larger one would delay what else the main process does


def why_unknown(backend: object) -> str:
    """Return why this process cannot look up the result of any task, or ""."""
    if isinstance(backend, RPCBackend):
        return "With rpc:// only who sent a task receives its result."
    if isinstance(backend, DisabledBackend):
        return "No results are kept: CELERY_RESULT_BACKEND names no place for them."
    return ""


class HandedOver(str):
    """The text of what a task returned, with the result that is still to be stored."""

    result: brokers.Result


class Running(threading.local):
    """About the task that runs in this thread: where its result is handed over to, and that."""

    database: int | None = None
    result: brokers.Result | None = None


running = Running()
registered: set[str] = set()  # names of Django's own tasks, whose arguments are stored, too


def run_task(
    name: str, task_id: str, request: dict[str, Any], *args: Any, **options: Any
) -> tuple[int, Any, float]:
    """Run a task as Celery's fast_trace_task does; what it returned may be HandedOver."""
    task = current_app.tasks[name]
    broker = brokers.current()
    # Another class of request would not store what it is handed over.
    is_ours = task.Request == Task.Request and task.acks_late
    if is_ours:
        running.database = broker.result_database()
    running.result = None
    try:
        failed, text, duration = trace.fast_trace_task(name, task_id, request, *args, **options)
    finally:
        running.database = None
    if failed:
        return failed, text, duration
    if is_ours and duration >= LONG_ENOUGH:
        queue = logs.queue(Context(request))
        outcome = metrics.outcome_here(queue, name, metrics.SUCCEEDED, duration)
        broker.acknowledge_early(request, outcome, running.result)
    if running.result:
        text = HandedOver(text)
        text.result = running.result
    return failed, text, duration


def was_sent(request: Any) -> bool:
    """Return whether a request has a name; when a message cannot be decoded, it has hardly anything."""
    return bool(getattr(request, "task", None))


def was_run(request: Any) -> bool:
    """
    Return whether a worker took the task.

    When a task fails, Celery stores a failure for whatever was to run after it, too: the next steps
    of its chain, the callback of its chord.
    """
    return was_sent(request) and bool(getattr(request, "hostname", None))


def message(request: Context) -> dict[str, Any]:
    """Return what send_task needs, besides name, arguments and queue, to send the message again."""
    options = request.as_execution_options()
    options["priority"] = (request.delivery_info or {}).get("priority")
    # It is a new attempt: it has all its retries, and has not expired.
    left_out = ("retries", "expires")
    return hidden(request, request.args, request.kwargs) | {
        name: value for name, value in options.items() if value is not None and name not in left_out
    }


def hidden(headers: Any, args: Any, kwargs: Any) -> dict[str, str]:
    """
    Return argsrepr and kwargsrepr of a message where its producer has set them, to hide arguments.

    https://docs.celeryq.dev/en/stable/userguide/tasks.html#hiding-sensitive-information-in-arguments
    """
    # As Celery sets them; what was a tuple arrives as a list.
    values = {"argsrepr": [args, tuple(args or ())], "kwargsrepr": [kwargs]}
    own = {
        name: {saferepr(value, current_app.amqp.argsrepr_maxsize) for value in given}
        for name, given in values.items()
    }
    given = {name: headers.get(name) for name in own}
    return {name: text for name, text in given.items() if text and text not in own[name]}


def is_failure(meta: dict[str, Any]) -> bool:
    """Return whether a result is that of a task that failed, as it is stored here."""
    return meta["status"] == states.FAILURE and bool(meta.get("name"))


class Results(RedisBackend):
    """
    Celery's results in Redis, with more about failed tasks, for ./manage.py failed.

    result_extended, Celery's own setting, would store the arguments of every task.
    """

    expires: int  # seconds

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        """Store what a task returned, or keep it for the main process; a chord counts at once."""
        database = running.database
        if store_result and self.expires and database is not None and not request.chord:
            result = self.encode_result(result, state)
            meta = self._get_result_meta(result, state, None, request)
            value: Any = self.encode(meta | {"task_id": task_id})
            if len(value) <= LARGEST:
                key: Any = self.get_key_for_task(task_id)
                running.result = (database, key.decode(), self.expires, value)
                return
        super().mark_as_done(task_id, result, request, store_result, state)

    def _get_result_meta(
        self, result: Any, state: str, traceback: Any, request: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        meta = super()._get_result_meta(  # type: ignore[misc]
            result, state, traceback, request, *args, **kwargs
        )
        if was_sent(request) and (state == states.FAILURE or request.task in registered):
            meta |= {
                "name": request.task,
                "args": request.args,
                "kwargs": request.kwargs,
                "worker": request.hostname,
                "retries": request.retries,
                "queue": logs.queue(request),
                "request_id": request.get("request_id"),
            }
        if was_run(request) and state == states.FAILURE:
            meta["message"] = message(request)
            if request.args is None:
                meta["body"] = request.body
        return meta

    def _store_result(
        self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any
    ) -> Any:
        request: Any = kwargs.get("request")
        if state == states.RETRY and was_sent(request):
            # Errors are stored of tasks without a result, too, but their success would not end this.
            task = current_app.tasks.get(request.task)
            if task and get_actual_ignore_result(task, request):
                return result
        if state == states.FAILURE and was_run(request):
            activity.count_failure(logs.queue(request))
            # First, so that a result that can be seen is on the list.
            with self.client.pipeline(transaction=False) as pipe:
                pipe.zadd(FAILED, {task_id: time.time()})
                pipe.zremrangebyrank(FAILED, 0, -KEPT - 1)
                pipe.execute()
        return super()._store_result(  # type: ignore[misc]
            task_id, result, state, *args, **kwargs
        )

    def failed(self, limit: int = KEPT) -> dict[str, dict[str, Any]]:
        """Return what is stored about the last failed tasks by their ids, the last one first."""
        return dict(self.each_failed(limit))

    def each_failed(self, limit: int = KEPT) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the same one by one: arguments may be large."""
        for lost in self.client.zrangebyscore(TAKEN, 0, time.time() - LONGEST):
            self.put_failed_back(lost.decode())
        for task_id in self.client.zrevrange(FAILED, 0, limit - 1):
            meta = self.get_task_meta(task_id.decode())
            # Results expire, and this list does not.
            if is_failure(meta):
                yield task_id.decode(), meta

    def take_failed(self, task_id: str) -> bool:
        """
        Take a task from the list; return whether it was there, which is true once.

        It is on the list again after a minute, unless `put_failed_back` or `remove_taken` is called.
        """
        return bool(self.client.eval(TAKE, 2, FAILED, TAKEN, task_id, time.time()))

    def put_failed_back(self, task_id: str) -> None:
        """Put a task on the list again."""
        self.client.zadd(FAILED, {task_id: time.time()})
        self.remove_taken(task_id)

    def remove_taken(self, task_id: str) -> None:
        """Forget that a task was on the list."""
        self.client.zrem(TAKEN, task_id)
