"""The start page in a real browser, and its stream."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from .stack import Stack, wait_for

UP = "Everything is up"


def card(page: Page, queue: str) -> object:
    """Find what the page says of a queue."""
    return page.locator(f"[data-queue={queue}]")


def wait_for_summary(page: Page, text: str) -> None:
    """Wait until the line at the top reads `text`."""
    page.locator("#summary").get_by_text(text, exact=True).wait_for()


# On a laptop --------------------------------------------------------------------------------------


def test_the_progress_bar_moves_and_ends_in_the_result(laptop: Stack, page: Page) -> None:
    page.goto(laptop.url)
    wait_for_summary(page, UP)
    for queue in ("default", "crawl", "notify"):
        form = card(page, queue).locator("form")
        form.locator("progress").evaluate(
            """bar => {
                bar.seen = [];
                new MutationObserver(() => bar.seen.push(bar.value)).observe(bar, {attributes: true});
            }"""
        )
        form.get_by_text("Send a task").click()
        form.get_by_text(f"Done by {queue}@{laptop.slug}.").wait_for(timeout=20_000)
        seen = form.locator("progress").evaluate("bar => bar.seen")
        assert seen == sorted(seen)
        assert len({value for value in seen if 0 < value < 1}) >= 2
        assert seen[-1] == 1
        assert form.locator("button").first.is_enabled()
        assert card(page, queue).get_by_role("img").get_attribute("aria-label")


def test_an_error_is_told_in_words(laptop: Stack, page: Page) -> None:
    page.goto(laptop.url)
    card(page, "crawl").get_by_text("One that fails").click()
    words = card(page, "crawl").get_by_text("Failed: This task was sent to fail.")
    words.wait_for(timeout=20_000)


def test_what_is_done_shows_in_the_chart(laptop: Stack, page: Page) -> None:
    page.goto(laptop.url)
    laptop.result(laptop.send("notify", steps=1))
    chart = card(page, "notify").get_by_role("img")
    wait_for("a label", lambda: "a minute" in chart.get_attribute("aria-label"))
    line = chart.locator("polyline").get_attribute("points").split()
    assert len(line) == 60
    assert len({point.split(",")[1] for point in line}) > 1
    assert int(card(page, "notify").locator(".rate").text_content()) >= 1


@pytest.mark.parametrize("service", ["broker"])
def test_a_service_that_is_away_is_named_and_comes_back(
    laptop: Stack, page: Page, service: str
) -> None:
    page.goto(laptop.url)
    wait_for_summary(page, UP)
    laptop.compose("stop", service)
    state = page.locator(f"[data-service={service}]")
    try:
        state.get_by_text("down").wait_for()
        assert card(page, "default").locator(".waiting").text_content() == "\u2013"
    finally:
        laptop.up()
    state.get_by_text("up").wait_for()
    wait_for_summary(page, UP)
    assert card(page, "default").locator(".waiting").text_content() == "0"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1180, 390])
def test_everybody_can_read_it(laptop: Stack, page: Page, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(laptop.url)
    wait_for_summary(page, UP)
    for button, words in (("Send a task", "Done by"), ("One that fails", "Failed")):
        card(page, "default").get_by_text(button).click()
        card(page, "default").get_by_text(words).wait_for(timeout=20_000)
        # "preload" has axe make style sheets of its own, which our Content-Security-Policy blocks.
        beside = {"exclude": [["#djDebug"], ["#djDebugRoot"]]}
        found = Axe().run(page, beside, {"preload": False}).response["violations"]
        assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# Its stream, in production ------------------------------------------------------------------------


@pytest.fixture(scope="session")
def staff(production: Stack) -> dict[str, str]:
    """The cookie of a member of the staff."""
    code = """
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.backends.db import SessionStore
user = get_user_model().objects.create_user("watcher", is_staff=True)
session = SessionStore()
session[SESSION_KEY] = str(user.pk)
session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
session[HASH_SESSION_KEY] = user.get_session_auth_hash()
session.create()
print(session.session_key)
"""
    return {"sessionid": production.python(code)}


@pytest.fixture
def listen(production: Stack, staff: dict[str, str]) -> Iterator[Callable[[], Iterator[str]]]:
    """Open streams, which are closed at the end."""
    with contextlib.ExitStack() as streams:

        def listen() -> Iterator[str]:
            answer = production.get("/live/", cookies=staff, stream=True)
            assert answer.headers["Content-Type"] == "text/event-stream"
            streams.enter_context(answer)
            return answer.iter_lines(chunk_size=1, decode_unicode=True)

        yield listen


def test_the_stream_is_for_staff(production: Stack) -> None:
    assert production.get("/live/").headers["Location"] == "/admin/login/?next=/live/"


def test_the_stream_passes_the_proxy_at_once(listen: Callable[[], Iterator[str]]) -> None:
    lines = listen()
    events = [line for line in (next(lines) for _ in range(12)) if line.startswith("data: ")]
    state = json.loads(events[-1].removeprefix("data: "))
    assert list(state["queues"]) == ["default", "crawl", "notify"]
    assert set(state["services"]) == {
        *("proxy", "web-a", "web-b", "flower", "beat", "broker", "cache", "db"),
    }


def test_a_reload_ends_streams_and_waits_for_none(
    production: Stack, listen: Callable[[], Iterator[str]]
) -> None:
    def serving() -> set[str]:
        rows = production.containers()["web-a"].top(ps_args="-eo pid,args")["Processes"]
        return {pid for pid, command in rows if command.endswith("gunicorn config.asgi")}

    before = serving()
    streams = [listen() for _ in range(4)]  # two from each web
    for stream in streams:
        next(line for line in stream if line.startswith("data: "))
    production.compose("exec", "--no-TTY", "web-a", "bash", "-c", "kill -HUP 1")
    wait_for("the new process", lambda: serving() - before)
    # Alone, a stream would last twice as long.
    wait_for("the end of the old one", lambda: len(serving()) == len(before), seconds=15)
    for stream in streams:
        assert all(re.match(r"$|:|id:|data:|retry:", line) for line in stream)  # and no broken end
