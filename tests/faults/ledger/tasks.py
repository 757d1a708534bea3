"""Tasks that the ledger judges. Each counts itself at its end."""

import os
import signal
import sys
import time
import uuid
from contextlib import suppress

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Task, shared_task
from django.db import InterfaceError, OperationalError
from django.utils import timezone

from .models import Entry

MEBIBYTE = 2**20

# What the owner of a project would write for a database that may be away for a moment.
PATIENT = {
    "autoretry_for": (OperationalError, InterfaceError),
    "max_retries": 20,
    "default_retry_delay": 1,  # seconds
}


@shared_task(**PATIENT)
def work(key: str, seconds: float) -> None:
    """Run for `seconds`, then count it, and log that it returns: a process may be killed in between."""
    time.sleep(seconds)
    Entry.finish(key)
    os.write(sys.stderr.fileno(), f"returns: {key}\n".encode())


class Own(Task):
    """A class of the project's own, which knows nothing of the stack's."""

    def before_start(self, *args: object) -> None:
        """Do nothing."""


@shared_task(base=Own, **PATIENT)
def work_of_another_class(key: str) -> None:
    """Count it."""
    Entry.finish(key)


@shared_task(**PATIENT)
def overrun(key: str, seconds: float) -> None:
    """Run for `seconds`, also when the soft time limit asks to come to an end; then count it."""
    Entry.start(key)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with suppress(SoftTimeLimitExceeded):
            time.sleep(left)
    Entry.finish(key)


@shared_task(**PATIENT)
def limited(key: str) -> None:
    """Number 0 ends at its soft time limit, number 1 goes on to the hard one, others end at once."""
    Entry.start(key)
    number = int(key.rpartition("-")[2])
    if number < 2:
        try:
            time.sleep(1000)
        except SoftTimeLimitExceeded:
            time.sleep(1000 * number)
    Entry.finish(key)


@shared_task(**PATIENT)
def fail_once(key: str) -> None:
    """Fail on the first try; then count it."""
    if Entry.start(key) == 1:
        raise LookupError(key)
    Entry.finish(key)


@shared_task(**PATIENT)
def tick(key: str) -> None:
    """Add a row, for each time that beat asks for it."""
    Entry.objects.create(key=f"{key}-{uuid.uuid4()}", accepted_at=timezone.now())


@shared_task(**PATIENT)
def eat(key: str, mebibytes: int) -> None:
    """On the first try use so much memory that the kernel ends the process; then count it."""
    if Entry.start(key) == 1:
        eaten = [b"." * MEBIBYTE for _ in range(mebibytes)]
        time.sleep(len(eaten))
    Entry.finish(key)


@shared_task(**PATIENT)
def poison(key: str) -> None:
    """Kill the process that runs this, on every try."""
    Entry.start(key)
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(bind=True, **PATIENT)
def retry_late(self, key: str, seconds: int) -> None:
    """On the first try ask to be tried again in `seconds`; then count it."""
    if Entry.start(key) == 1:
        raise self.retry(countdown=seconds)
    Entry.finish(key)
