from typing import Any

from celery.beat import PersistentScheduler

from core.pulse import pulse

from .heartbeat import beat


class Scheduler(PersistentScheduler):
    """Beat's file scheduler, which also shows that it works."""

    max_interval = 10  # seconds between two looks at the schedule, at most

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due; return the seconds until the next look."""
        beat()
        pulse.beat()
        return super().tick(*args, **kwargs)
