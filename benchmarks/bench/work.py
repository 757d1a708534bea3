"""What the measured tasks do."""

import time

from .broker import NOTES, redis


def nothing() -> None:
    """Do nothing."""


def note_delay(sent: float) -> None:
    """Note the seconds since `sent`, a time of this machine's clock."""
    delay = time.time() - sent
    with redis(NOTES) as notes:
        notes.rpush("delays", delay)
