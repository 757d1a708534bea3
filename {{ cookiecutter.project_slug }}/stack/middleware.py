import logging
import time
from collections.abc import Callable
from traceback import walk_tb

from django.db import OperationalError as DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import loader
from django.utils.decorators import sync_only_middleware
from django.utils.deprecation import MiddlewareMixin
from kombu.exceptions import OperationalError as QueueError

from . import logs, metrics

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
def measure(get_response: GetResponse) -> GetResponse:
    """Count each request for /metrics, with its view, its status and the time until its response began."""

    def middleware(request: HttpRequest) -> HttpResponse:
        start = time.perf_counter()
        response = get_response(request)
        match = request.resolver_match
        view = match.view_name if match else ""
        metrics.count_request(view, response.status_code, time.perf_counter() - start)
        return response

    return middleware


@sync_only_middleware
def one_thread(get_response: GetResponse) -> GetResponse:
    """
    Change nothing, but make Django run all middleware above in one thread.

    Under ASGI each of Django's own would switch to a thread and back, which halves the throughput.
    Async views and streams still run on the event loop.
    """
    return get_response


# What PostgreSQL reports when it ends or refuses a connection. Without a code the client itself found
# that there is none. https://www.postgresql.org/docs/current/errcodes-appendix.html
UNREACHABLE = {"57P01", "57P02", "57P03", "57P05", "53300"}
CONNECTION_EXCEPTION = "08"

COMMIT = {BaseDatabaseWrapper.commit.__code__}
AFTER_COMMIT = {
    BaseDatabaseWrapper.run_and_clear_commit_hooks.__code__,
    BaseDatabaseWrapper.on_commit.__code__,  # without a transaction
}


class ServiceUnavailableMiddleware(MiddlewareMixin):
    """
    Answer 503 when the task queue or the database was unavailable, 500 when data was saved before.

    503 with Retry-After is an invitation to send the request again, which some clients do by
    themselves: https://www.rfc-editor.org/rfc/rfc9110#section-15.6.4
    When an order is saved and only its task was not sent, that would order twice.
    """

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Return the answer to one of these errors, None for all others."""
        service = unavailable(exception)
        if service is None:
            return None
        logger.error("The %s is unavailable: %s", service, request.path, exc_info=exception)
        error = f"The {service} is unavailable."
        run = {frame.f_code for frame, _ in walk_tb(exception.__traceback__)}
        if run & AFTER_COMMIT:
            rest = "The data was saved, but not all that follows from it is done. Do not send it again."
        elif run & COMMIT:
            rest = "The data may have been saved. Look before you send it again."
        else:
            return answer(request, 503, f"{error} Try again in a minute.", {"Retry-After": "60"})
        return answer(request, 500, f"{error} {rest}")


def unavailable(exception: Exception) -> str | None:
    """Return which service could not be reached, None for any other error."""
    if isinstance(exception, QueueError):
        return "task queue"
    if isinstance(exception, DatabaseError):
        # To psycopg a deadlock, a timeout of a lock and a query that was cancelled are one, too.
        code = getattr(exception.__cause__, "sqlstate", "")
        if code is None or code in UNREACHABLE or code.startswith(CONNECTION_EXCEPTION):
            return "database"
    return None


def answer(
    request: HttpRequest, status: int, error: str, headers: dict[str, str] | None = None
) -> HttpResponse:
    """Return a page for a browser, which the project may replace in its templates/, else JSON."""
    if request.get_preferred_type(["application/json", "text/html"]) == "text/html":
        page = loader.render_to_string("stack/unavailable.html", {"error": error})
        return HttpResponse(page, status=status, headers=headers)
    return JsonResponse({"error": error}, status=status, headers=headers)
