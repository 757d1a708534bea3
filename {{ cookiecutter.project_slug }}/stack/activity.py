"""
What workers and beat report about themselves, every few seconds, through the cache.

It costs a task next to nothing: a worker counts it, and writes from a thread of its own.
"""

import functools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import redis
from celery import current_app
from django.conf import settings

from . import logs

STEP = 10  # seconds whose tasks are counted together
MINUTE = 60 // STEP  # steps
STEPS = 60 + MINUTE  # steps that are shown, and one minute more
LOST = 7  # seconds without a report after which a worker is down; there is one every 2
BEAT_LOST = 25  # the same for beat, which reports every 10
HOST = socket.gethostname()  # of the container: a worker may have a second one for a while


def consumed() -> list[str]:
    """Return the names of the queues that this worker consumes."""
    return list(current_app.amqp.queues.consume_from)


def by_queue(tasks: Mapping[str, int]) -> Counter[str]:
    """Return how many are of each queue that this worker consumes; unknown names count for its first."""
    queues, found = consumed(), Counter[str]()
    for name, count in tasks.items():
        found[name if name in queues else queues[0]] += count
    return found


@functools.cache
def store() -> redis.Redis:
    """Return a client of the cache's Redis: Django's cache has no hashes."""
    return redis.Redis.from_url(settings.CACHE_URL, socket_connect_timeout=2, socket_timeout=2)


class Activity:
    """What this process reports when it is a worker or beat."""

    def __init__(self) -> None:
        self.writer = ThreadPoolExecutor(1, "activity")
        self.writing: Future | None = None
        self.started: Counter[str] = Counter()  # tasks of this worker, by their queues
        self.reported: Counter[str] = Counter()  # those of them that are known to have ended
        self.stopping = self.ended = False

    def write(self, write: Callable[..., object], *args: object) -> None:
        """Call `write` in the thread, unless it still waits for a slow or unavailable cache."""
        if self.writing is None or self.writing.done():
            self.writing = self.writer.submit(write, *args)

    def report_worker(self, **kwargs: object) -> None:
        """Report how many tasks run and how many have ended; a receiver of heartbeat_sent."""
        from celery.worker import state

        active = [one for one in list(state.requests.values()) if one in state.active_requests]
        running = by_queue(Counter(map(logs.queue, active)))
        self.write(self.write_worker, running, by_queue(dict(self.started)) - running)

    def write_worker(self, running: Counter[str], done: Counter[str]) -> None:
        """Write to the cache what each queue of this worker has."""
        with store().pipeline(transaction=False) as pipe:
            for queue in consumed():
                key = f"activity:workers:{queue}"
                about = {"at": time.time(), "running": running[queue], "stopping": self.stopping}
                pipe.hset(key, HOST, json.dumps(about))
                pipe.expire(key, 60)
                if done[queue] > self.reported[queue]:
                    key = counter(queue, time.time())
                    pipe.incrby(key, done[queue] - self.reported[queue])
                    pipe.expire(key, STEP * (STEPS + 1))
            pipe.execute()
        self.reported = done

    def worker_is_stopping(self, **kwargs: object) -> None:
        """Go on while the last tasks end, without heartbeats; a receiver of worker_shutting_down."""
        self.stopping = True

        def keep_reporting() -> None:
            while not self.ended:
                self.report_worker()
                time.sleep(2)

        threading.Thread(target=keep_reporting, daemon=True).start()

    def worker_has_stopped(self, **kwargs: object) -> None:
        """Remove this worker's report; a receiver of worker_shutdown."""

        def remove() -> None:
            for queue in consumed():
                store().hdel(f"activity:workers:{queue}", HOST)

        self.ended = True
        self.writer.submit(remove)  # the process ends when that is done

    def report_beat(self) -> None:
        """Report that beat looked at its schedule."""
        self.write(self.write_beat)

    def write_beat(self) -> None:
        """Write to the cache that beat runs, and when it looked last."""
        with store().pipeline(transaction=False) as pipe:
            pipe.set("activity:beat", HOST, BEAT_LOST)
            pipe.set("activity:beat-tick", time.time())
            pipe.execute()


activity = Activity()


@dataclass
class Workers:
    """The workers of a queue: how many are up and how many stop, what they run and have done."""

    up: int
    stopping: int
    running: int
    # Tasks that ended within a minute, for each STEP seconds; the last is now's.
    done: list[int]
    failed: list[int]  # not in the former


def counter(queue: str, moment: float, what: str = "done") -> str:
    """Return the key that counts the tasks of the step with `moment`, in seconds since 1970."""
    return f"activity:{what}:{queue}:{int(moment / STEP)}"


def count_failure(queue: str) -> None:
    """Count a task that failed, in whatever process stores that; nothing without a cache."""
    key = counter(queue, time.time(), "failed")
    with suppress(redis.RedisError), store().pipeline(transaction=False) as pipe:
        pipe.incr(key)
        pipe.expire(key, STEP * (STEPS + 1))
        pipe.execute()


def read(queues: list[str]) -> tuple[dict[str, Workers], bool]:
    """
    Return the workers of each queue, and whether beat runs.

    Raises redis.RedisError when the cache does not answer.
    """
    now = time.time()
    with store().pipeline(transaction=False) as pipe:
        pipe.exists("activity:beat")
        for queue in queues:
            pipe.hvals(f"activity:workers:{queue}")
            moments = [now - STEP * ago for ago in reversed(range(STEPS))]
            for what in ("done", "failed"):
                pipe.mget([counter(queue, moment, what) for moment in moments])
        beat, *answers = pipe.execute()
    return {
        queue: about(workers, ended, failed, now)
        for queue, workers, ended, failed in zip(
            queues, answers[::3], answers[1::3], answers[2::3], strict=True
        )
    }, bool(beat)


def about(
    found: list[bytes], ended: list[bytes | None], failed: list[bytes | None], now: float
) -> Workers:
    """Return the sum of what the workers of a queue reported and did in each step until now."""
    workers = [worker for worker in map(json.loads, found) if worker["at"] > now - LOST]
    stopping = sum(worker["stopping"] for worker in workers)
    running = sum(worker["running"] for worker in workers)
    failures = per_minute(failed, now)
    # A failure is counted at once, the end of its task with the worker's next report.
    done = [max(0, n - bad) for n, bad in zip(per_minute(ended, now), failures, strict=True)]
    return Workers(len(workers) - stopping, stopping, running, done, failures)


def per_minute(counters: list[bytes | None], now: float) -> list[int]:
    """Return the sum of each minute that ends with one of the steps, the last one now."""
    counts = [int(count or 0) for count in counters]
    sums = [sum(counts[step : step + MINUTE]) for step in range(1, STEPS - MINUTE)]
    # The last step is not over, so the last minute includes a part of another one.
    part = 1 - now % STEP / STEP
    return [*sums, round(sum(counts[-MINUTE:]) + part * counts[-MINUTE - 1])]
