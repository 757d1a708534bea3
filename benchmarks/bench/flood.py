"""
Send short tasks at a steady rate beside a flood of long ones, from inside the stack.

python -m bench.flood FLOOD_QUEUE COUNT NOTIFY_QUEUE RATE SECONDS; prints JSON.
"""

import json
import sys
import time

import config  # noqa: F401  the app that shared tasks belong to
from celery import current_app

from . import tasks
from .broker import NOTES, SHIPPED, empty, redis

BURN = 0.05  # seconds of CPU time
SETTLE = 2  # seconds between the end of filling and the first short task
PATIENCE = 120  # seconds that the last short task may take


def measure(flood: str, count: int, notify: str, rate: int, seconds: int) -> dict[str, object]:
    """
    Fill `flood` with `count` tasks, then send `rate` tasks a second to `notify`.

    Give begin and end of these `seconds`, the seconds that each short task took, how many were
    sent, the long ones that ended meanwhile, and those that still waited at the end.
    """
    with redis(SHIPPED) as broker, redis(NOTES) as notes:
        empty(notes)
        while (missing := count - broker.llen(flood)) > 0:
            for _ in range(missing):
                tasks.burn.apply_async((BURN,), queue=flood)
        time.sleep(SETTLE)
        begin, sent = time.time(), rate * seconds
        for number in range(sent):
            sleep_until(begin + number / rate)
            tasks.notify.apply_async((time.time(),), queue=notify)
        sleep_until(begin + seconds)
        end, waiting = time.time(), broker.llen(flood)

        until = time.monotonic() + PATIENCE
        while notes.llen("notified") < sent and time.monotonic() < until:
            time.sleep(0.2)
        current_app.control.purge()
        while broker.hlen("unacked"):
            time.sleep(0.2)
        burned = [float(moment) for moment in notes.lrange("burned", 0, -1)]
        return {
            "begin": begin,
            "end": end,
            "sent": sent,
            "notified": [float(took) for took in notes.lrange("notified", 0, -1)],
            "burned": sum(begin <= moment < end for moment in burned),
            "waiting": waiting,
        }


def sleep_until(moment: float) -> None:
    """Sleep until `moment`, a time of this machine's clock, unless it is over."""
    time.sleep(max(0, moment - time.time()))


if __name__ == "__main__":
    flood, count, notify, rate, seconds = sys.argv[1:]
    print(json.dumps(measure(flood, int(count), notify, int(rate), int(seconds))))
