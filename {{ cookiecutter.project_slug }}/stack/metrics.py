"""
What the stack counts about requests and tasks; exposition.py answers /metrics with it.

The sums of all processes are in Redis, so each web instance knows them all and none ends with a container.
With the stack's transport the script that acknowledges a task counts it, in the broker's Redis: exactly
once, whatever dies. All else is counted in memory, and a thread adds it to the cache's Redis every two
seconds; when that is unavailable, later.
"""

import atexit
import functools
import json
import os
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from typing import Any

import redis

from . import activity, brokers

SUCCEEDED, FAILED, RETRIED = "succeeded", "failed", "retried"
UNKNOWN = "unknown"  # the name of a task that no worker has code for
# Seconds. The histograms' buckets; what takes longer than the last is in one more.
TASK_BUCKETS = (0.01, 0.1, 1, 10, 60, 300)
REQUEST_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

PAUSE = 2  # seconds between two additions to the cache
SUMS = "metrics"  # a hash in the cache: each name, below, and its count
FAILING, FAILED_AT = "metrics:failing", "metrics:failed-at"
DAY = 24 * 3600  # seconds after which a task that failed, and was not sent again, is forgotten
LATELY = 4  # minutes: below those that ops/alarm waits, so that a moment wakes nobody


@functools.cache
def name(*parts: object) -> str:
    """Return the name of a count. Whatever is a part is one of a few: nothing that users send is one."""
    return json.dumps(parts)


def outcome(queue: str, task: str, state: str, seconds: float | None) -> brokers.Outcome:
    """Return what is counted when a task has ended; without `seconds` no run time."""
    if seconds is None:
        return name("task", queue, task, state), "", "", 0
    bucket = bisect_left(TASK_BUCKETS, seconds)
    total = name("task_seconds", queue, "sum")
    microseconds = max(0, round(seconds * 1e6))
    return (
        name("task", queue, task, state),
        name("task_seconds", queue, bucket),
        total,
        microseconds,
    )


def outcome_here(queue: str, task: str, state: str, seconds: float | None) -> brokers.Outcome:
    """Return the same in a worker; a queue that it does not consume counts as its first."""
    queues = activity.consumed()
    return outcome(queue if queue in queues else queues[0], task, state, seconds)


class Counts:
    """The counts of this process that are not in the cache yet."""

    def __init__(self) -> None:
        """Begin with none; a child process does so, too."""
        self.events: deque[tuple[Any, ...]] = deque()  # append() is atomic, and needs no lock
        self.sums: Counter[str] = Counter()
        self.lately: Counter[tuple[int, str]] = Counter()  # by minute and what
        # Whether a task has succeeded, and how often it has failed since.
        self.failing: dict[str, tuple[bool, int]] = {}
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None

    def add(self, *event: object) -> None:
        """Count an event: one of the functions below, with its arguments."""
        self.events.append(event)
        if self.thread is None:
            self.start()

    def start(self) -> None:
        """Start the thread, in the process that counts: a thread does not survive a fork."""
        with self.lock:
            if self.thread is None:
                self.thread = threading.Thread(target=self.keep_pushing, daemon=True)
                self.thread.start()
                atexit.register(self.push)

    def keep_pushing(self) -> None:
        """Add to the cache what there is, every two seconds."""
        while True:
            time.sleep(PAUSE)
            self.push()

    def push(self) -> None:
        """Add to the cache what there is, in one step; without a cache all is kept for the next time."""
        with self.lock:
            while self.events:
                count, *arguments = self.events.popleft()
                count(self, *arguments)
            if not (self.sums or self.failing):
                return
            try:
                with activity.store().pipeline() as pipe:
                    self.write(pipe)
                    pipe.execute()
            except redis.RedisError:
                return
            self.sums.clear()
            self.lately.clear()
            self.failing.clear()

    def write(self, pipe: Any) -> None:
        """Put all into a pipeline."""
        for what, count in self.sums.items():
            pipe.hincrby(SUMS, what, count)
        for (minute, what), count in self.lately.items():
            pipe.hincrby(lately_key(minute), what, count)
            pipe.expire(lately_key(minute), (LATELY + 1) * 60)
        for task, (succeeded, failures) in self.failing.items():
            if succeeded:
                pipe.hdel(FAILING, task)
            if failures:
                pipe.hincrby(FAILING, task, failures)
                pipe.zadd(FAILED_AT, {task: time.time()})

    # Events ------------------------------------------------------------------------------------------

    def request(self, view: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        bucket = bisect_left(REQUEST_BUCKETS, seconds)
        self.sums[name("request", view, status, bucket)] += 1
        self.sums[name("request", view, status, "sum")] += round(seconds * 1e6)
        self.count_lately("errors" if status >= 500 else "others")

    def refused(self) -> None:
        """Count a task that a producer could not send."""
        self.sums[name("refused")] += 1
        self.count_lately("refused")

    def task(self, task: str, state: str, ended: brokers.Outcome | None) -> None:
        """Count the end of a task; without `ended` the broker's Redis does so."""
        if ended:
            what, bucket, total, microseconds = ended
            self.sums[what] += 1
            if bucket:
                self.sums[bucket] += 1
                self.sums[total] += microseconds
        succeeded, failures = self.failing.get(task, (False, 0))
        if state == SUCCEEDED:
            self.failing[task] = True, 0
        elif state == FAILED and task != UNKNOWN:
            self.failing[task] = succeeded, failures + 1

    def count_lately(self, what: str) -> None:
        """Count for this minute."""
        self.lately[int(time.time() / 60), what] += 1


counts = Counts()
os.register_at_fork(after_in_child=counts.__init__)  # type: ignore[misc]


def count_request(view: str, status: int, seconds: float) -> None:
    """Count a request that was answered."""
    counts.add(Counts.request, view, status, seconds)


def count_refused() -> None:
    """Count a task that a producer could not send."""
    counts.add(Counts.refused)


def count_task(
    message: Any, queue: str, task: str, state: str, seconds: float | None, acknowledged: bool
) -> None:
    """Count how a task ended: with the acknowledgement of its message, which comes next, or now."""
    ended = outcome_here(queue, task, state, seconds)
    count_with = getattr(message.channel, "count_with", None)
    if count_with:
        count_with(message.delivery_tag, ended, acknowledged)
    counts.add(Counts.task, task, state, None if count_with else ended)


# Read ----------------------------------------------------------------------------------------------
# All of these raise redis.RedisError when the cache does not answer.


def lately_key(minute: int) -> str:
    """Return the key of what is counted in a minute since 1970."""
    return f"metrics:lately:{minute}"


def lately() -> Counter[str]:
    """Return what was counted in the last minutes: tasks "refused", requests with "errors" and "others"."""
    now, found = int(time.time() / 60), Counter[str]()
    with activity.store().pipeline(transaction=False) as pipe:
        for minute in range(now - LATELY, now + 1):
            pipe.hgetall(lately_key(minute))
        for answer in pipe.execute():
            found.update({what.decode(): int(count) for what, count in answer.items()})
    return found


def failing() -> dict[str, int]:
    """Return how often each task has failed since its last success, if the last failure was today's."""
    store: Any = activity.store()
    recent = store.zrangebyscore(FAILED_AT, time.time() - DAY, "inf")
    failures = store.hmget(FAILING, recent) if recent else []
    return {
        task.decode(): int(count)
        for task, count in zip(recent, failures, strict=True)
        if count is not None
    }


def sums() -> dict[str, int]:
    """Return all counts that are in the cache."""
    found: Any = activity.store().hgetall(SUMS)
    return decoded(found)


def decoded(found: dict[bytes, bytes]) -> dict[str, int]:
    """Return the names and counts of a hash in Redis."""
    return {what.decode(): int(count) for what, count in found.items()}
