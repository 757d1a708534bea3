"""What the load asks for."""

import asyncio
from collections.abc import AsyncIterator

from django.contrib.contenttypes.models import ContentType
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse


def answer(request: HttpRequest) -> HttpResponse:
    """Answer at once, from a thread."""
    return HttpResponse("ok")


async def answer_async(request: HttpRequest) -> HttpResponse:
    """Answer at once, from the event loop."""
    return HttpResponse("ok")


def row(request: HttpRequest) -> HttpResponse:
    """Read one row by the ORM, which is one query."""
    return HttpResponse(ContentType.objects.get(app_label="auth", model="user").model)


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Send a line per second, without end."""

    async def lines() -> AsyncIterator[str]:
        while True:
            yield "data: 1\n\n"
            await asyncio.sleep(1)

    return StreamingHttpResponse(lines(), content_type="text/event-stream")
