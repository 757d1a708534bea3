import time
from contextlib import suppress

from celery import Task, shared_task
from celery.exceptions import SoftTimeLimitExceeded
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


@shared_task
def wait(key: str) -> str:
    """Run until the cache has this key."""
    while not cache.get(key):
        time.sleep(0.1)
    return "waited"


@shared_task(bind=True)
def again(self: Task) -> None:
    """Be tried twice, then have another task run on another queue."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    sleep.apply_async((0,), queue="notify")


@shared_task
def hold_on(minutes: int = 1) -> None:
    """Run for this long, whatever it is told before it is killed."""
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        with suppress(SoftTimeLimitExceeded):
            time.sleep(60)


@shared_task
def fail(mail: str) -> None:
    """Fail, and do not say with whose address."""
    raise RuntimeError("the task fails")
