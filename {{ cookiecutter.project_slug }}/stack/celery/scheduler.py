from typing import Any

from celery.beat import PersistentScheduler

from stack import heartbeat
from stack.activity import activity


class Scheduler(PersistentScheduler):
    """Celery's own scheduler, with a heartbeat for the health check and for the dashboard."""

    max_interval = 10  # seconds between two looks at the schedule

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due; return the seconds until the next look."""
        heartbeat.touch()
        activity.report_beat()
        return super().tick(*args, **kwargs)
