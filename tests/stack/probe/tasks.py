import time

from celery import shared_task
from django.core.cache import cache


@shared_task
def tick() -> None:
    """Count the calls of beat."""
    cache.add("ticks", 0, timeout=None)
    cache.incr("ticks")


@shared_task
def sleep(seconds: float) -> str:
    """Run for `seconds`."""
    time.sleep(seconds)
    return "slept"
