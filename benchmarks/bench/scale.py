"""
Fill the broker with many tasks, waiting or failed, from inside the stack.

python -m bench.scale STEP [COUNT [TASK]]; prints JSON.
"""

import json
import sys
import time
import uuid

import config  # noqa: F401  the app that shared tasks belong to
from celery import current_app
from stack.celery.results import FAILED, KEPT

from . import tasks
from .broker import SHIPPED, redis

QUEUE = "default"
PART = 1000  # keys or messages in a pipeline
MEANT = {"nothing": (), "wait": (0.05,)}  # the arguments


def fill(count: int, task: str = "nothing") -> dict[str, object]:
    """Let `count` tasks wait: one that was sent, and copies of its message under ids of their own."""
    send(1, task)
    with redis(SHIPPED) as broker:
        text = broker.lindex(QUEUE, 0).decode()
        message = json.loads(text)
        ids = {message["headers"]["id"], message["properties"]["delivery_tag"]}
        for begin in range(1, count, PART):
            copies = []
            for _ in range(min(PART, count - begin)):
                copy = text
                for old in ids:
                    copy = copy.replace(old, str(uuid.uuid4()))
                copies.append(copy)
            broker.lpush(QUEUE, *copies)
        return {"waiting": broker.llen(QUEUE)}


def send(count: int, task: str = "nothing") -> dict[str, float]:
    """Send tasks as a project does; return how many a second."""
    started = time.perf_counter()
    for _ in range(count):
        getattr(tasks, task).apply_async(MEANT[task], queue=QUEUE)
    return {"rate": count / (time.perf_counter() - started)}


def rate(seconds: int) -> dict[str, float]:
    """Watch the queue once it drains; return how many tasks left it in a second."""
    with redis(SHIPPED) as broker:
        full = broker.llen(QUEUE)
        while (before := broker.llen(QUEUE)) == full:
            time.sleep(0.02)
        started = time.perf_counter()
        while time.perf_counter() < started + seconds and broker.llen(QUEUE):
            time.sleep(0.05)
        left = broker.llen(QUEUE)
        return {"rate": (before - left) / (time.perf_counter() - started), "left": left}


def failures(count: int) -> dict[str, object]:
    """Let `count` more tasks have failed: one that did, and copies of what is stored about it."""
    backend = current_app.backend
    result = tasks.fail.apply_async(queue=QUEUE)
    result.get(timeout=60, propagate=False)
    stored = backend.client.get(backend.get_key_for_task(result.id)).decode()
    for begin in range(1, count, PART):
        with backend.client.pipeline(transaction=False) as pipe:
            names = [str(uuid.uuid4()) for _ in range(min(PART, count - begin))]
            for name in names:
                key = backend.get_key_for_task(name)
                pipe.setex(key, backend.expires, stored.replace(result.id, name))
            pipe.zadd(FAILED, dict.fromkeys(names, time.time()))
            pipe.zremrangebyrank(FAILED, 0, -KEPT - 1)
            pipe.execute()
    return {"listed": backend.client.zcard(FAILED)}


def clear() -> dict[str, object]:
    """Drop all that waits."""
    with redis(SHIPPED) as broker:
        return {"dropped": broker.unlink(QUEUE)}


def memory() -> dict[str, int]:
    """Return the bytes of what the broker holds."""
    with redis(SHIPPED) as broker:
        return {"bytes": broker.info("memory")["used_memory"]}


if __name__ == "__main__":
    step, *rest = sys.argv[1:]
    print(json.dumps(globals()[step](*(int(word) if word.isdigit() else word for word in rest))))
