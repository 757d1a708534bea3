"""The dashboard. In production it is for staff only, because it starts tasks."""

import uuid
from collections.abc import Callable, Coroutine
from functools import wraps

from asgiref.sync import sync_to_async
from celery import current_app
from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_POST, require_safe

from stack.tasks import sample

from .live import SERVICES, live

View = Callable[..., Coroutine[None, None, HttpResponseBase]]


def staff_in_production(view: View) -> View:
    """Redirect visitors who are not staff to the log-in page, unless DEBUG is on."""

    @wraps(view)
    async def wrapped(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
        if settings.DEBUG or (await request.auser()).is_staff:
            return await view(request, *args, **kwargs)
        return redirect_to_login(request.get_full_path())

    return wrapped


@require_safe
@staff_in_production
async def index(request: HttpRequest) -> HttpResponse:
    """Show each service, and each queue with its buttons; the stream brings the figures."""
    context = {"name": settings.PROJECT_NAME, "queues": settings.QUEUES, "services": SERVICES}
    return await sync_to_async(render)(request, "dashboard/index.html", context)


@require_GET
@staff_in_production
async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream what the page shows; see live.py."""
    await sync_to_async(close_old_connections)()  # the log-in took one from the pool
    return StreamingHttpResponse(
        live.listen(),
        content_type="text/event-stream",
        # No proxy may buffer an event: nginx obeys the second of these.
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@require_POST
@staff_in_production
async def send(request: HttpRequest) -> JsonResponse:
    """
    Send the sample task to the form's queue, with "fail" in the form a failing one.

    Returns 202 with its id, 400 for an unknown queue.
    """
    queue = request.POST.get("queue")
    if queue not in settings.QUEUES:
        return JsonResponse({"error": "There is no such queue."}, status=400)
    result = await sync_to_async(sample.apply_async, thread_sensitive=False)(
        kwargs={"fail": "fail" in request.POST}, queue=queue
    )
    return JsonResponse({"id": result.id}, status=202)


@require_safe
@staff_in_production
async def status(request: HttpRequest, task_id: uuid.UUID) -> JsonResponse:
    """Return the state of a task, its progress from 0 to 1, and its result or error."""
    return JsonResponse(await sync_to_async(look_up, thread_sensitive=False)(str(task_id)))


def look_up(task_id: str) -> dict[str, object]:
    """Return state, progress, and result or error of a task from the result backend."""
    result = current_app.AsyncResult(task_id)
    state, info = result.state, result.info
    if state == "PROGRESS":
        return {"state": state, "progress": info["done"] / info["steps"]}
    if result.successful():
        return {"state": state, "progress": 1, "result": str(info)}
    if result.ready():
        return {"state": state, "progress": 1, "error": str(info) or type(info).__name__}
    return {"state": state, "progress": 0}
