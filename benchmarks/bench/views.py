"""What the load asks for."""

from django.contrib.contenttypes.models import ContentType
from django.http import HttpRequest, HttpResponse


def answer(request: HttpRequest) -> HttpResponse:
    """Answer at once, from a thread."""
    return HttpResponse("ok")


async def answer_async(request: HttpRequest) -> HttpResponse:
    """Answer at once, from the event loop."""
    return HttpResponse("ok")


def row(request: HttpRequest) -> HttpResponse:
    """Read one row by the ORM, which is one query."""
    return HttpResponse(ContentType.objects.get(app_label="auth", model="user").model)
