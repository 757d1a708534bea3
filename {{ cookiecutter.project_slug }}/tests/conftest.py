import os
from collections.abc import Iterator

import pytest

# A real Redis, but not the broker, so that no worker of the running stack takes a test's task.
REDIS = f"redis://:{os.environ['CACHE_PASSWORD']}@cache:6379"
os.environ["CELERY_BROKER_URL"] = f"{REDIS}/14"
os.environ["CELERY_RESULT_BACKEND"] = f"{REDIS}/15"


@pytest.fixture
def worker(django_db_setup: None) -> Iterator[None]:
    """
    Run a real worker for every queue, in threads of this process.

    A task sees the rows of a test with django_db(transaction=True), which commits them.
    """
    from celery.contrib.testing.worker import start_worker
    from django.conf import settings

    from config.celery import app

    app.control.purge()
    with start_worker(
        app, concurrency=4, pool="threads", perform_ping_check=False, queues=settings.QUEUES
    ):
        yield
        app.control.shutdown()  # at once; by itself it looks every two seconds only
