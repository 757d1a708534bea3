"""
Send tasks and watch the broker, from inside the stack.

python -m bench.measure fill|drain|delay shipped|defaults COUNT; prints JSON.
"""

import importlib
import json
import sys
import time

from .broker import DEFAULTS, NOTES, SHIPPED, empty, redis

PAUSE = 0.05  # seconds between two sends to an idle queue


def fill(tasks, broker, queue: str, count: int) -> dict[str, float]:
    """Send `count` tasks that do nothing; give the number sent in a second."""
    started = time.perf_counter()
    for _ in range(count):
        tasks.nothing.delay()
    return {"rate": count / (time.perf_counter() - started), "waiting": broker.llen(queue)}


def drain(tasks, broker, queue: str, count: int) -> dict[str, float]:
    """
    Wait until `count` waiting tasks are done; give when the first was taken, and the seconds since then.

    And the turns of Redis's event loop: with "appendfsync always" each waits for the disk at most once.
    """
    while broker.llen(queue) >= count:
        time.sleep(0.005)
    first, started = time.time(), time.perf_counter()
    turns = broker.info("stats")["eventloop_cycles"]
    while broker.llen(queue) or broker.hlen("unacked"):
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    turns = broker.info("stats")["eventloop_cycles"] - turns
    return {"first": first, "seconds": seconds, "turns": turns}


def delay(tasks, broker, queue: str, count: int) -> dict[str, list[float]]:
    """Send `count` tasks to an idle queue; give the seconds from each send to its task's start."""
    with redis(NOTES) as notes:
        empty(notes)
        for _ in range(count):
            tasks.note_delay.delay(time.time())
            time.sleep(PAUSE)
        until = time.monotonic() + 30
        while notes.llen("delays") < count and time.monotonic() < until:
            time.sleep(0.1)
        return {"delays": [float(text) for text in notes.lrange("delays", 0, -1)]}


if __name__ == "__main__":
    step, side, number = sys.argv[1:]
    import config  # noqa: F401  the app that shared tasks belong to

    found = importlib.import_module("bench.tasks" if side == "shipped" else "bench.defaults")
    place = (SHIPPED, "default") if side == "shipped" else (DEFAULTS, "celery")
    with redis(place[0]) as connection:
        print(json.dumps(globals()[step](found, connection, place[1], int(number))))
