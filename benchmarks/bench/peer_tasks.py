"""
Tasks that any Celery app can run, noted in the folder of this file, and what sends them.

python -m peer_tasks APP STEP …; prints JSON.
"""

import json
import sys
import time
from pathlib import Path

from celery import shared_task
from celery.app.utils import find_app

HERE = Path(__file__).parent
SETTLE = 2  # seconds between the last task of a flood and the first short one


def note(what: str, value: float) -> None:
    """Add a line to the notes; lines of several processes do not mix."""
    with (HERE / "notes").open("a") as file:
        file.write(f"{what} {value}\n")


@shared_task(name="peer.burn")
def burn(seconds: float) -> None:
    """Use a CPU for this long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))
    note("burned", time.time())


@shared_task(name="peer.notify")
def notify(sent: float) -> None:
    """Note the seconds since `sent`."""
    note("notified", time.time() - sent)


@shared_task(name="peer.work")
def work(number: int, seconds: float) -> None:
    """Wait this long and note that it was done."""
    time.sleep(seconds)
    note("done", number)


def flood(app, count: str, queue: str, short_queue: str, rate: str, seconds: str) -> dict:
    """Send `count` long tasks, then short ones at a steady rate; return when these began and ended."""
    for _ in range(int(count)):
        app.send_task("peer.burn", (0.05,), **({"queue": queue} if queue else {}))
    time.sleep(SETTLE)
    begin, sent = time.time(), int(rate) * int(seconds)
    for number in range(sent):
        time.sleep(max(0, begin + number / int(rate) - time.time()))
        where = {"queue": short_queue} if short_queue else {}
        app.send_task("peer.notify", (time.time(),), **where)
    return {"begin": begin, "end": time.time(), "sent": sent}


def load(app, queue: str, long: str) -> dict:
    """Send two tasks of `long` seconds, and two of 0.3 s per second until there is a file "over"."""
    where, accepted, refused = {"queue": queue} if queue else {}, 0, 0
    while not (HERE / "over").exists():
        seconds = float(long) if accepted < 2 else 0.3
        try:
            app.send_task("peer.work", (accepted, seconds), **where)
            accepted += 1
        except Exception:  # whatever the broker's client raises
            refused += 1
        time.sleep(0.5 if accepted >= 2 else 0)
    return {"accepted": accepted, "refused": refused}


if __name__ == "__main__":
    name, step, *rest = sys.argv[1:]
    print(json.dumps(globals()[step](find_app(name), *rest)))
