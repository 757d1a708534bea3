import logging
from collections.abc import Callable

from django.db import OperationalError as DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.decorators import sync_only_middleware
from django.utils.deprecation import MiddlewareMixin
from kombu.exceptions import OperationalError as QueueError

from . import logs

logger = logging.getLogger(__name__)

View = Callable[[HttpRequest], HttpResponse]


@sync_only_middleware
def in_one_thread(get_response: View) -> View:
    """
    Change nothing, but let all middleware above run in one thread.

    Under ASGI Django's own would each hop to a thread and back, which halves the requests a second.
    Async views and streams still run on the event loop.
    """
    return get_response


@sync_only_middleware
def named_in_the_log(get_response: View) -> View:
    """Have all lines of a request, and of the tasks that it sends, tell the name nginx gave it."""

    def named(request: HttpRequest) -> HttpResponse:
        name = request.headers.get("X-Request-ID")
        logs.fields.set({"request_id": name} if name else {})
        return get_response(request)

    return named


class AwayMiddleware(MiddlewareMixin):
    """Answer 503 when a view could not send its task or use the database, instead of 500."""

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Name the error if it is one of these; else leave it to others."""
        if isinstance(exception, QueueError):
            part = "task queue"
        elif isinstance(exception, DatabaseError):
            part = "database"
        else:
            return None
        logger.error("The %s is away: %r", part, request.path, exc_info=exception)
        error = f"The {part} is away. Try again in a minute."
        return JsonResponse({"error": error}, status=503, headers={"Retry-After": "60"})
