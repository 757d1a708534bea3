"""Every signal of Celery that the stack receives."""

import gc
import time
from typing import Any

from celery.signals import (
    beat_init,
    before_task_publish,
    heartbeat_sent,
    setup_logging,
    task_postrun,
    task_prerun,
    worker_init,
    worker_shutdown,
    worker_shutting_down,
)

from stack import heartbeat, logs
from stack.activity import activity

LOOK = 10  # seconds between two of beat's looks at its schedule


def connect() -> None:
    """Connect the receivers; a second time changes nothing."""
    # A worker's event loop sends one every two seconds, also when all its children are busy.
    heartbeat_sent.connect(heartbeat.touch)
    worker_shutting_down.connect(heartbeat.touch_until_the_end)
    # The watchdog has to know whether the broker answers.
    worker_init.connect(heartbeat.write_broker)
    beat_init.connect(heartbeat.write_broker)
    beat_init.connect(add_heartbeat)
    # For the dashboard and ./manage.py queues.
    heartbeat_sent.connect(activity.report_worker)
    worker_shutting_down.connect(activity.worker_is_stopping)
    worker_shutdown.connect(activity.worker_has_stopped)
    # What each log line has about its task, and about the request that sent it.
    before_task_publish.connect(logs.add_request_id)
    task_prerun.connect(logs.task_started)
    task_postrun.connect(logs.task_ended)

    before_task_publish.connect(add_time)
    worker_init.connect(freeze)
    setup_logging.connect(leave_logging_to_django)


def add_time(headers: dict[str, Any], **kwargs: object) -> None:
    """Add the time of sending, in seconds since 1970: the age of the oldest task follows from it."""
    headers["sent_at"] = time.time()


def add_heartbeat(sender: Any, **kwargs: object) -> None:
    """Report each of beat's looks at its schedule to watchdog and dashboard, whatever its scheduler is."""
    scheduler = sender.scheduler
    tick = scheduler.tick

    def report_and_tick(*args: Any, **kwargs: Any) -> float:
        """Send what is due; return the seconds until the next look."""
        heartbeat.touch()
        activity.report_beat()
        return min(tick(*args, **kwargs), LOOK)

    scheduler.tick = report_and_tick


def freeze(**kwargs: object) -> None:
    """Keep the garbage collector from copying shared memory into each child: 40 MB per worker."""
    gc.collect()
    gc.freeze()


def leave_logging_to_django(**kwargs: object) -> None:
    """Keep Celery from setting up logging of its own: LOGGING of the settings holds for it, too."""
