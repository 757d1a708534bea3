"""
Pings for a dead man's switch, such as Healthchecks.io: when they stop, it raises the alarm.

Each queue has a check of its own. https://healthchecks.io/docs/http_api/
"""

import logging
import re
import urllib.error
import urllib.request
from typing import Any

from django.conf import settings
from django.core.cache import cache

from . import brokers
from .environment import env

EVERY = 60  # seconds
EXPIRES = 3600  # seconds: a queue may be that long, all the time, and still be alive
PAUSE = 30  # seconds between two pings of a queue, when several have piled up in it
TIMEOUT = 5  # seconds

logger = logging.getLogger(__name__)
failed = False  # the last one of this process


def schedule() -> dict[str, dict[str, Any]]:
    """Return beat's entries for the pings; none without PING_URL."""
    if not env("PING_URL", default=""):
        return {}
    priority = brokers.module(settings.CELERY_BROKER_URL).URGENT
    return {
        f"stack-ping-{queue}": {
            "task": "stack.tasks.ping",
            "schedule": EVERY,
            "options": {"queue": queue, "expires": EXPIRES, "priority": priority},
        }
        for queue in settings.QUEUES
    }


def send(queue: str, worker: str | None) -> None:
    """
    Request the check of a queue; log when that fails, once.

    Without COMPOSE_PROJECT_NAME the name of the project is what the worker has after its "@".

    Neither PING_URL nor what it contains is in a log line: who knows it can silence the alarm.
    """
    global failed
    url = env("PING_URL", default="")
    if not url or not is_due(queue):
        return
    project = env("COMPOSE_PROJECT_NAME", default="") or (worker or "").rpartition("@")[2]
    name = re.sub("[^a-z0-9_-]", "-", f"{project}-{queue}".lower())
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/{name}?create=1", timeout=TIMEOUT).close()  # noqa: S310
        failed = False
    except Exception as error:  # whatever it is: the next one comes soon
        if not failed:
            logger.warning("PING_URL cannot be reached from this worker: %s", reason(error))
        failed = True


def is_due(queue: str) -> bool:
    """Return whether the last ping of a queue was some time ago, or the cache does not know."""
    try:
        return cache.add(f"stack:ping:{queue}", True, PAUSE)
    except Exception:  # whatever it is: then there is one too many
        return True


def reason(error: Exception) -> str:
    """Return what went wrong, without the URL, which some messages contain."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the answer is {error.code}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return type(error).__name__
