"""
A pytest plugin, for the project's tests and the stack's; pyproject.toml loads it.

Tasks of tests go through a real Redis, but not through the broker, so that no worker of the running
stack takes one.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

REDIS = f"redis://:{os.environ['CACHE_PASSWORD']}@cache:6379"
# Before Django loads the settings.
os.environ["CACHE_URL"] = f"{REDIS}/13"  # so that /status/ does not count tasks of tests
os.environ["CELERY_BROKER_URL"] = f"{REDIS}/14"
os.environ["CELERY_RESULT_BACKEND"] = f"{REDIS}/15"
os.environ["LOG_LEVEL"] = "INFO"  # whatever .env has: tests look at log lines


def wait_for(look: Callable[[], Any], seconds: float = 120) -> Any:
    """Return what `look` returns once that is true; AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {found!r}")
        time.sleep(0.05)
    return found


@pytest.fixture
def worker(django_db_setup: None) -> Iterator[None]:
    """
    Run a real worker for every queue, in threads of this process.

    A task sees the rows of a test with django_db(transaction=True), which commits them.
    """
    from celery import current_app
    from celery.contrib.testing.worker import start_worker
    from django.conf import settings

    # Seconds that it waits for a task at a time, and so that its end waits: one by itself.
    current_app.conf.broker_transport_options["polling_interval"] = 0.1
    current_app.control.purge()
    with start_worker(
        current_app, concurrency=4, pool="threads", perform_ping_check=False, queues=settings.QUEUES
    ):
        yield
        current_app.control.shutdown()  # at once; by itself it looks every two seconds only
