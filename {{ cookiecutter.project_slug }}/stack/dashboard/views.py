"""The dashboard. In production it is for staff only, because it starts tasks."""

import datetime
import uuid
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from asgiref.sync import sync_to_async
from celery import current_app
from celery.schedules import crontab, maybe_schedule
from celery.schedules import schedule as interval
from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db import close_old_connections
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import NoReverseMatch
from django.utils.timesince import timesince
from django.views.decorators.http import require_GET, require_POST, require_safe
from kombu.exceptions import OperationalError

from stack import failed
from stack.celery.results import Results, why_unknown
from stack.tasks import sample

from .live import SERVICES, live
from .runbook import sections

View = Callable[..., Coroutine[None, None, HttpResponseBase]]


async def is_allowed(request: HttpRequest) -> bool:
    """Return whether a visitor may see all this: staff, and with DEBUG everybody."""
    return settings.DEBUG or (await request.auser()).is_staff


def staff_in_production(view: View) -> View:
    """
    Redirect visitors who are not staff to LOGIN_URL, unless DEBUG is on.

    Raises PermissionDenied when the project has no such page.
    """

    @wraps(view)
    async def wrapped(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
        if await is_allowed(request):
            return await view(request, *args, **kwargs)
        try:
            return redirect_to_login(request.get_full_path())
        except NoReverseMatch as error:
            raise PermissionDenied from error

    return wrapped


@require_safe
@staff_in_production
async def index(request: HttpRequest) -> HttpResponse:
    """Show each service, and each queue with its buttons; the stream brings the figures."""
    has_failed = isinstance(current_app.backend, Results)
    context = {
        "name": settings.PROJECT_NAME,
        "queues": settings.QUEUES,
        "services": SERVICES,
        "failures_unknown": "Unknown" if has_failed else failed.ONLY_REDIS,
        "schedule": [
            (name, entry["task"], when(entry["schedule"]))
            for name, entry in current_app.conf.beat_schedule.items()
        ],
    }
    return await sync_to_async(render)(request, "stack/dashboard.html", context)


@require_safe
@staff_in_production
async def runbook(request: HttpRequest) -> HttpResponse:
    """Show docs/runbook.md, with an anchor for each problem."""
    context = {"name": settings.PROJECT_NAME, "sections": await sync_to_async(sections)()}
    return await sync_to_async(render)(request, "stack/runbook.html", context)


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


@require_GET
@staff_in_production
async def monitoring(request: HttpRequest) -> HttpResponseRedirect:
    """Redirect to /monitoring/, after the log-in if need be: where the proxy sends visitors without one."""
    return HttpResponseRedirect("/monitoring/")


@require_GET
async def monitoring_allowed(request: HttpRequest) -> HttpResponse:
    """Return 204 to who may see /monitoring/, or else 401: what the proxy asks before each request."""
    return HttpResponse(status=204 if await is_allowed(request) else 401)


@require_POST
@staff_in_production
async def send(request: HttpRequest) -> JsonResponse:
    """
    Send the sample task to the form's queue, with "fail" in the form a failing one.

    Returns 202 with its id, and why it cannot be followed or ""; 400 for an unknown queue.
    """
    queue = request.POST.get("queue")
    if queue not in settings.QUEUES:
        return JsonResponse({"error": "There is no such queue."}, status=400)
    result = await sync_to_async(sample.apply_async, thread_sensitive=False)(
        kwargs={"fail": "fail" in request.POST}, queue=queue
    )
    return sent(result.id)


def sent(task_id: str, follow: bool = True) -> JsonResponse:
    """Return 202 with the id of a task, and whether its result can be looked up, or why not."""
    why_not = why_unknown(current_app.backend)
    answer = {"id": task_id, "follow": follow and not why_not, "why_not": why_not}
    return JsonResponse(answer, status=202)


def when(schedule: Any) -> str:
    """Return in words when beat sends an entry: an interval, or the five fields of a crontab."""
    found = maybe_schedule(schedule)
    if isinstance(found, crontab):
        return str(found).removeprefix("<crontab: ").partition(" (")[0]
    if type(found) is not interval:
        return str(found)
    if found.seconds < 60:
        return f"every {found.seconds:g} seconds"
    start = datetime.datetime(2000, 1, 1)
    return f"every {timesince(start, start + datetime.timedelta(seconds=found.seconds))}"


@require_POST
@staff_in_production
async def retry(request: HttpRequest) -> JsonResponse:
    """Send the failed task with the form's id again; returns 202, or 409 and why it is not sent."""
    task_id = request.POST.get("id", "")
    user = str((await request.auser()).pk)
    if error := await sync_to_async(send_again, thread_sensitive=False)(task_id, user):
        return JsonResponse({"error": error}, status=409)
    # Until it has ended again, its result is that of the failure.
    return JsonResponse({"id": task_id, "follow": False}, status=202)


def send_again(task_id: str, user: str) -> str:
    """Send a failed task again, as ./manage.py failed --retry does; return why not, or ""."""
    try:
        (done,) = failed.logged(failed.change_tasks([task_id], again=True), True, user)
    except (OperationalError, ValueError) as error:
        return str(error)
    return done.why_not


@require_POST
@staff_in_production
async def run(request: HttpRequest) -> JsonResponse:
    """Send the form's entry of beat's schedule now; returns 202 with its id, 404 for an unknown one."""
    entry = current_app.conf.beat_schedule.get(request.POST.get("name"))
    if entry is None:
        return JsonResponse({"error": "There is no such entry."}, status=404)
    current_app.loader.import_default_modules()
    task = current_app.tasks[entry["task"]]
    result = await sync_to_async(task.apply_async, thread_sensitive=False)(
        entry.get("args"), entry.get("kwargs"), **(entry.get("options") or {})
    )
    return sent(result.id, follow=not task.ignore_result)


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
