"""What the tests add to a rendered project to see it from inside."""

import asyncio
import time
from collections.abc import AsyncIterator

from core.tasks import sample
from django.core.files.storage import default_storage
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt


@csrf_exempt
def upload(request: HttpRequest) -> JsonResponse:
    """Store the file "file" as media; tell its URL."""
    file = request.FILES["file"]
    return JsonResponse({"url": default_storage.url(default_storage.save(file.name, file))})


def show_request(request: HttpRequest) -> JsonResponse:
    """Tell how Django sees the client."""
    return JsonResponse(
        {
            "client": request.META["REMOTE_ADDR"],
            "forwarded_for": request.META.get("HTTP_X_FORWARDED_FOR"),
            "scheme": request.scheme,
            "host": request.get_host(),
        }
    )


async def hang(request: HttpRequest) -> None:
    """Block the event loop for good."""
    time.sleep(3600)


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
