"""Failed tasks and dead letters, for staff: what they are, and sending them again or dropping them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import redis
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.dateparse import parse_datetime
from django.views.decorators.http import require_POST, require_safe
from kombu.exceptions import OperationalError

from stack import failed, queues
from stack.celery.results import KEPT

from .views import staff_in_production

FEW = 5  # that are shown of a kind
PAGE = 50  # of one kind alone, and of all kinds together
SECONDS = 20  # that a request works on dead letters
UNREADABLE = "The failed tasks cannot be read: the result backend does not answer."


@dataclass
class Kind:
    """Tasks of the same name, queue and error."""

    newest: failed.Entry
    oldest: failed.Entry
    count: int = 0
    shown: list[failed.Entry] = field(default_factory=list)


class Page:
    """What is shown: all kinds, or one of them, page by page."""

    def __init__(self, chosen: str, number: int) -> None:
        """Read all; what cannot be read becomes a sentence."""
        self.chosen, self.number = chosen, number
        self.kinds: dict[str, Kind] = {}
        self.room = PAGE
        self.troubles: list[str] = []
        self.letters: list[failed.Entry] = []
        self.dead = 0
        try:
            self.add(failed.tasks())
        except ValueError as error:
            self.troubles.append(str(error))
        except redis.RedisError:
            self.troubles.append(UNREADABLE)
        try:
            self.letters, self.dead = failed.letters()
        except OperationalError as error:
            self.troubles.append(f"The dead letters cannot be read: {error}")
        self.add(self.letters)

    def add(self, entries: Iterable[failed.Entry]) -> None:
        """Count entries, the newest first, and keep those that are shown."""
        for entry in entries:
            kind = self.kinds.setdefault(entry.kind, Kind(entry, entry))
            kind.oldest = entry
            kind.count += 1
            if entry.kind == self.chosen:
                is_shown = PAGE * (self.number - 1) < kind.count <= PAGE * self.number
            else:
                is_shown = kind.count <= FEW and self.room > 0
                self.room -= is_shown
            if is_shown:
                kind.shown.append(entry)

    def context(self) -> dict[str, Any]:
        """Return what the template needs."""
        one = self.kinds.get(self.chosen)
        return {
            "name": settings.PROJECT_NAME,
            "kinds": [one] if one else list(self.kinds.values()),
            "one": one,
            "number": self.number,
            "more": one and PAGE * self.number < one.count,
            "troubles": self.troubles,
            "dead": self.dead,
            "dead_shown": len(self.letters),
            "kept": KEPT,
        }


@require_safe
@staff_in_production
async def index(request: HttpRequest) -> HttpResponse:
    """Show all kinds, or that of the query, with the newest of each."""
    number = request.GET.get("page", "")
    page = await sync_to_async(Page, thread_sensitive=False)(
        request.GET.get("kind", ""), int(number) if number.isdecimal() and number != "0" else 1
    )
    return await answer(request, page.context())


async def answer(request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
    """Render the page, which nobody keeps: it has arguments."""
    response = await sync_to_async(render)(request, "stack/failed.html", context)
    response["Cache-Control"] = "no-store"
    return response


@dataclass(frozen=True)
class Change:
    """What a form asks for: one, or all of a kind up to a moment."""

    again: bool
    dead: bool
    id: str
    kind: str
    until: str

    def is_meant(self, entry: failed.Entry) -> bool:
        """Return whether it is one of those."""
        if self.id:
            return entry.id == self.id
        until = parse_datetime(self.until)
        return entry.kind == self.kind and until is not None and entry.at <= until

    def run(self, user: str) -> Iterator[failed.Done]:
        """Send them again or drop them, the oldest first."""
        if self.dead:
            changes = failed.change_letters(self.is_meant, self.again, SECONDS)
        elif self.id:
            changes = failed.change_tasks([self.id], self.again)
        else:
            ids = [entry.id for entry in failed.tasks() if self.is_meant(entry)]
            changes = failed.change_tasks(reversed(ids), self.again)
        return failed.logged(changes, self.again, user)


def run(change: Change, user: str) -> list[tuple[int, str]]:
    """Do what a form asks for; return the level of each message and the message."""
    done = 0
    not_done: list[str] = []
    troubles: list[str] = []
    try:
        for one in change.run(user):
            done += not one.why_not
            not_done += [one.why_not] if one.why_not else []
    except (OperationalError, ValueError) as error:
        troubles.append(f"The rest is unchanged: {error}")
    except redis.RedisError:
        troubles.append(UNREADABLE)
    if not (done or not_done or troubles):
        troubles.append("Nothing was done: another has sent them again or dropped them meanwhile.")
    if len(not_done) > 1:
        not_done = [f"{queues.number(len(not_done))} not, the first: {not_done[0]}"]
    found = [(messages.WARNING, text) for text in [*not_done, *troubles]]
    if done:
        text = f"{queues.number(done)} {'sent again' if change.again else 'dropped'}."
        found.insert(0, (messages.SUCCESS, text))
    return found


@require_POST
@staff_in_production
async def change(request: HttpRequest) -> HttpResponse:
    """Send again or drop what the form names, and return to the page; all of a kind on its second step."""
    form = {name: request.POST.get(name, "") for name in ("do", "id", "kind", "until", "back")}
    if form["do"] not in ("retry", "drop") or not (form["id"] or form["kind"]):
        return HttpResponseBadRequest()
    asked = Change(
        form["do"] == "retry", "dead" in request.POST, form["id"], form["kind"], form["until"]
    )
    if form["kind"] and "sure" not in request.POST:
        page = await sync_to_async(Page, thread_sensitive=False)(form["kind"], 1)
        if one := page.kinds.get(form["kind"]):
            return await answer(request, page.context() | {"again": asked.again, "sure": one})
    user = str((await request.auser()).pk)
    found = await sync_to_async(run, thread_sensitive=False)(asked, user)
    await sync_to_async(add_messages)(request, found)
    url = reverse("stack_dashboard:failed")
    return HttpResponseRedirect(f"{url}?kind={form['back']}" if form["back"].isalnum() else url)


def add_messages(request: HttpRequest, found: list[tuple[int, str]]) -> None:
    """Store what the next page shows; a project without Django's messages goes without."""
    for level, text in found:
        messages.add_message(request, level, failed.shorten(text), fail_silently=True)
