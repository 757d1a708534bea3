"""What the measured tasks do."""

import functools
import time

from .broker import NOTES, redis

notes = functools.cache(lambda: redis(NOTES))  # one connection for each child process


def nothing() -> None:
    """Do nothing."""


def note_delay(sent: float) -> None:
    """Note the seconds since `sent`, a time of this machine's clock."""
    delay = time.time() - sent
    with redis(NOTES) as notes:
        notes.rpush("delays", delay)


def wait(seconds: float) -> None:
    """Wait, as tasks do that talk to others."""
    time.sleep(seconds)


def fail() -> None:
    """Fail."""
    raise ValueError("as it was told")


def burn(seconds: float) -> None:
    """Use a CPU for this long, however long that takes, and note the time of its end."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))
    notes().rpush("burned", time.time())


def notify(sent: float) -> None:
    """Read a row, as whoever sends mail does, and note the seconds since `sent`."""
    from django.contrib.contenttypes.models import ContentType

    ContentType.objects.get(app_label="auth", model="user")
    notes().rpush("notified", time.time() - sent)
