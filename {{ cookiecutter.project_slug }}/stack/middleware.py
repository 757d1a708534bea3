import logging
from collections.abc import Callable

from django.db import OperationalError as DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.decorators import sync_only_middleware
from django.utils.deprecation import MiddlewareMixin
from kombu.exceptions import OperationalError as QueueError

from . import logs

logger = logging.getLogger(__name__)

GetResponse = Callable[[HttpRequest], HttpResponse]


@sync_only_middleware
def request_id(get_response: GetResponse) -> GetResponse:
    """Put nginx's request ID into each log line of the request, and into the tasks that it sends."""

    def middleware(request: HttpRequest) -> HttpResponse:
        found = request.headers.get("X-Request-ID")
        logs.fields.set({"request_id": found} if found else {})
        return get_response(request)

    return middleware


@sync_only_middleware
def one_thread(get_response: GetResponse) -> GetResponse:
    """
    Change nothing, but make Django run all middleware above in one thread.

    Under ASGI each of Django's own would switch to a thread and back, which halves the throughput.
    Async views and streams still run on the event loop.
    """
    return get_response


class ServiceUnavailableMiddleware(MiddlewareMixin):
    """Answer 503 when a view could not send its task or reach the database, instead of 500."""

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Return the answer to one of these errors, None for all others."""
        if isinstance(exception, QueueError):
            service = "task queue"
        elif isinstance(exception, DatabaseError):
            service = "database"
        else:
            return None
        logger.error("The %s is unavailable: %s", service, request.path, exc_info=exception)
        error = f"The {service} is unavailable. Try again in a minute."
        return JsonResponse({"error": error}, status=503, headers={"Retry-After": "60"})
