"""What the tests add to a rendered project to see it from inside."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator

from django.core.files.storage import default_storage
from django.db import connection
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt
from stack.tasks import sample

from . import tasks

logger = logging.getLogger(__name__)


@csrf_exempt
def upload(request: HttpRequest) -> JsonResponse:
    """Store the file "file" as media; return its URL, and where it was before if that was a file."""
    file = request.FILES["file"]
    before = getattr(file, "temporary_file_path", str)()
    url = default_storage.url(default_storage.save(file.name, file))
    return JsonResponse({"url": url, "before": before})


def show_request(request: HttpRequest) -> JsonResponse:
    """Return how Django sees the client, and which version this is; send an HSTS of its own."""
    return JsonResponse(
        {
            "client": request.META["REMOTE_ADDR"],
            "forwarded_for": request.META.get("HTTP_X_FORWARDED_FOR"),
            "scheme": request.scheme,
            "host": request.get_host(),
            "version": os.environ.get("IMAGE_TAG"),
        },
        headers={"Strict-Transport-Security": "max-age=1"},
    )


def query(request: HttpRequest) -> JsonResponse:
    """Hold a connection to the database for a moment."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.5)")
    return JsonResponse({})


async def slow(request: HttpRequest) -> JsonResponse:
    """Answer after three seconds."""
    await asyncio.sleep(3)
    return JsonResponse({})


async def hang(request: HttpRequest) -> None:
    """Block the event loop for good."""
    time.sleep(3600)


@csrf_exempt
def fail(request: HttpRequest) -> None:
    """Fail, and have a task fail that got something of the user."""
    tasks.fail.apply_async((request.POST["mail"],), queue="notify")
    raise RuntimeError("the view fails")


def again(request: HttpRequest) -> JsonResponse:
    """Log what the client calls itself; send a task that is tried twice and sends another."""
    logger.info("asked by %s", request.headers["User-Agent"], extra={"answer": 42})
    return JsonResponse({"id": tasks.again.delay().id})


def send(request: HttpRequest, queue: str) -> JsonResponse:
    """Send a task that takes a second; tell its id."""
    return JsonResponse({"id": sample.apply_async(kwargs={"steps": 3}, queue=queue).id})


async def stream(request: HttpRequest, seconds: int) -> StreamingHttpResponse:
    """Answer one line a second, then "end"."""

    async def lines() -> AsyncIterator[str]:
        for second in range(seconds):
            yield f"{second}\n"
            await asyncio.sleep(1)
        yield "end"

    return StreamingHttpResponse(lines())
