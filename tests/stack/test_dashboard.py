"""The dashboard in a real browser, and its stream."""

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Response

from tests.faults.helpers import children, main_process
from tests.runbook import follow, forget_what_was_counted, problems

from .stack import Stack, wait_for

UP = "Everything is up"
BESIDE = {"exclude": [["#djDebug"], ["#djDebugRoot"]]}  # of the page, for axe


def card(page: Page, queue: str) -> object:
    """Find what the page says of a queue."""
    return page.locator(f"[data-queue={queue}]")


def sentence(page: Page, problem: str, text: str) -> None:
    """Wait until the page says what is wrong, with a link to what to do."""
    item = page.locator("#problems li").filter(has_text=text)
    item.wait_for()
    assert item.get_by_role("link").get_attribute("href") == f"/status/runbook/#{problem}"


def wait_for_summary(page: Page, text: str) -> None:
    """Wait until the line at the top reads `text`."""
    page.locator("#summary").get_by_text(text, exact=True).wait_for()


# In development ----------------------------------------------------------------------------------


def test_the_progress_bar_moves_and_ends_in_the_result(laptop: Stack, page: Page) -> None:
    forget_what_was_counted(laptop)
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))
    page.goto(f"{laptop.url}/status/")
    wait_for_summary(page, UP)
    for queue in ("default", "crawl", "notify"):
        answers.clear()
        form = card(page, queue).locator("form")
        form.locator("progress").evaluate(
            """bar => {
                bar.seen = [];
                new MutationObserver(() => bar.seen.push(bar.value)).observe(bar, {attributes: true});
            }"""
        )
        form.get_by_text("Send a task").click()
        form.get_by_text(f"Done by {queue}@{laptop.slug}.").wait_for()
        seen = form.locator("progress").evaluate("bar => bar.seen")
        told = [answer.json() for answer in answers if re.search(r"/sample/.+/$", answer.url)]
        assert seen == [0, *(task["progress"] for task in told)]
        assert seen == sorted(seen)
        assert seen[-1] == 1
        assert form.locator("button").first.is_enabled()
        assert card(page, queue).get_by_role("img").get_attribute("aria-label")


def test_a_failed_task_is_shown_and_sent_again(laptop: Stack, page: Page) -> None:
    page.goto(f"{laptop.url}/status/")
    card(page, "crawl").get_by_text("Send a failing task").click()
    card(page, "crawl").get_by_text("Failed: This task was sent to fail.").wait_for()
    assert card(page, "crawl").locator("progress").get_attribute("data-state") == "down"
    wait_for("its figure", lambda: card(page, "crawl").locator(".failed").text_content() >= "1")

    first = page.locator("#failures li").first
    first.get_by_text("stack.tasks.sample in crawl").wait_for()
    first.get_by_text("SampleError: This task was sent to fail.").wait_for()
    task = first.locator("input[name=id]").input_value()
    page.once("dialog", lambda dialog: dialog.dismiss())
    first.get_by_text("Send again").click()
    page.once("dialog", lambda dialog: dialog.accept())
    with page.expect_response(lambda answer: answer.url.endswith("/retry/")) as answer:
        first.get_by_text("Send again").click()
    assert (answer.value.status, answer.value.json()["id"]) == (202, task)


def test_an_entry_of_the_schedule_runs_now(laptop: Stack, page: Page) -> None:
    page.goto(f"{laptop.url}/status/")
    entry = page.locator("[data-entry=clear-sessions]")
    entry.get_by_text("stack.tasks.clear_sessions, every 1").wait_for()
    page.once("dialog", lambda dialog: dialog.accept())
    entry.get_by_text("Run now").click()
    entry.get_by_text("Done", exact=True).wait_for()


def test_what_is_done_shows_in_the_chart(laptop: Stack, page: Page) -> None:
    page.goto(f"{laptop.url}/status/")
    laptop.result(laptop.send("notify", steps=1))
    chart = card(page, "notify").get_by_role("img")
    wait_for("a label", lambda: "per minute" in chart.get_attribute("aria-label"))
    line = chart.locator("polyline").first.get_attribute("points").split()
    assert len(line) == 60
    assert len({point.split(",")[1] for point in line}) > 1
    assert int(card(page, "notify").locator(".rate").text_content()) >= 1


def test_a_stopped_worker_shows_as_down_and_its_tasks_wait(laptop: Stack, page: Page) -> None:
    forget_what_was_counted(laptop)
    page.goto(f"{laptop.url}/status/")
    wait_for_summary(page, UP)
    default = card(page, "default")
    laptop.compose("stop", "worker-default")
    try:
        default.get_by_text("Worker down").wait_for()
        wait_for_summary(page, "Down: worker-default")
        sentence(page, "no-worker", "No worker consumes the queue default")
        laptop.python(
            "from types import SimpleNamespace; from stack.celery import signals;"
            "signals.time = SimpleNamespace(time=lambda: 1.0);"
            "from stack.tasks import sample; sample.apply_async()"
        )
        sentence(page, "queue-stuck", "The queue default is behind: its oldest task has waited for")
        default.get_by_text("Send a task").click()
        default.get_by_text("Waiting until the worker is up again").wait_for()
        default.locator(".waiting").get_by_text("2", exact=True).wait_for()
        follow(laptop, "no-worker")
    finally:
        laptop.start("worker-default")
    default.get_by_text(f"Done by default@{laptop.slug}.").wait_for()
    wait_for_summary(page, UP)
    assert "default@" in follow(laptop, "queue-stuck")
    assert problems(laptop) == {}


def test_what_to_do_is_on_the_page_of_the_runbook(laptop: Stack, page: Page) -> None:
    forget_what_was_counted(laptop)
    laptop.compose("stop", "beat")
    try:
        laptop.python("from stack import activity; activity.store().delete('activity:beat')")
        page.goto(f"{laptop.url}/status/")
        sentence(page, "beat-silent", "beat is silent")
        page.locator("#problems").get_by_role("link").click()
        page.wait_for_url("**/status/runbook/#beat-silent")
        heading = page.get_by_role("heading", name="beat-silent")
        assert heading.evaluate("heading => heading.matches(':target')")
        found = Axe().run(page, BESIDE, {"preload": False}).response["violations"]
        assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == []
        follow(laptop, "beat-silent")
    finally:
        laptop.start("beat")
    page.get_by_role("link", name="Status", exact=True).click()
    wait_for_summary(page, UP)


def test_a_task_that_fails_again_and_again_is_named_until_it_succeeds(laptop: Stack) -> None:
    failing = ("tasks-fail", "stack.tasks.sample")
    assert failing not in problems(laptop)
    for _ in range(5):
        laptop.send("crawl", steps=2, pause=0, fail=True)
    wait_for("it is named", lambda: failing in problems(laptop))
    assert "SampleError: This task was sent to fail." in follow(laptop, "tasks-fail")
    laptop.result(laptop.send("crawl", steps=1, pause=0))
    wait_for("it is not", lambda: failing not in problems(laptop))


def test_tasks_in_a_queue_without_a_worker_are_shown(laptop: Stack, page: Page) -> None:
    forget_what_was_counted(laptop)
    laptop.python(
        "from celery import current_app; from stack import brokers; from stack.tasks import sample; "
        "current_app.amqp.queues.add(brokers.current().queue('old')); "
        "sample.apply_async(queue='old')"
    )
    page.goto(f"{laptop.url}/status/")
    sentence(page, "tasks-stranded", "The queue old holds 1 task and has no worker")
    follow(laptop, "tasks-stranded")
    wait_for_summary(page, UP)


def test_a_frozen_worker_shows_as_down(laptop: Stack, page: Page) -> None:
    forget_what_was_counted(laptop)
    page.goto(f"{laptop.url}/status/")
    wait_for_summary(page, UP)
    container = laptop.containers()["worker-notify"]
    (wrapper,) = children(container, main_process(laptop, "worker-notify"))  # of watchfiles
    (worker,) = children(container, wrapper)
    os.kill(worker, signal.SIGSTOP)
    try:
        card(page, "notify").get_by_text("Worker down").wait_for()
        wait_for_summary(page, "Down: worker-notify")
    finally:
        with contextlib.suppress(ProcessLookupError):  # the watchdog was quicker
            os.kill(worker, signal.SIGCONT)
    wait_for_summary(page, UP)


@pytest.mark.parametrize(
    ("service", "place", "unknown", "known", "problem", "fix"),
    [
        (
            *("broker", ".waiting", "\u2013", "0"),
            *("broker-down", lambda stack: follow(stack, "broker-down")),
        ),
        (
            *("cache", ".state", "Worker unknown", "Worker up"),
            *("cache-down", lambda stack: follow(stack, "cache-down")),
        ),
        (
            *("db", ".waiting", "0", "0"),
            *("database-down", lambda stack: follow(stack, "database-down")),
        ),
        ("flower", ".state", "Worker up", "Worker up", "", lambda stack: stack.start("flower")),
    ],
)
def test_an_unavailable_service_is_named_until_it_is_back(
    laptop: Stack,
    page: Page,
    service: str,
    place: str,
    unknown: str,
    known: str,
    problem: str,
    fix: Callable[[Stack], object],
) -> None:
    forget_what_was_counted(laptop)
    page.goto(f"{laptop.url}/status/")
    wait_for_summary(page, UP)
    laptop.compose("stop", service)
    state = page.locator(f"[data-service={service}]")
    told = card(page, "default").locator(place)
    try:
        state.get_by_text("down").wait_for()
        told.get_by_text(unknown, exact=True).wait_for()
        if problem:
            sentence(page, problem, "does not answer")
            assert (problem, "") in problems(laptop)
        fix(laptop)
    finally:
        laptop.start(service)
    state.get_by_text("up").wait_for()
    wait_for_summary(page, UP)
    told.get_by_text(known, exact=True).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1180, 390])
def test_everybody_can_read_it(laptop: Stack, page: Page, scheme: str, width: int) -> None:
    forget_what_was_counted(laptop)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{laptop.url}/status/")
    wait_for_summary(page, UP)
    for button, words in (("Send a task", "Done by"), ("Send a failing task", "Failed")):
        card(page, "default").get_by_text(button).click()
        card(page, "default").get_by_text(words).wait_for()
        # "preload" has axe make style sheets of its own, which our Content-Security-Policy blocks.
        found = Axe().run(page, BESIDE, {"preload": False}).response["violations"]
        assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# Its stream ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def streams(stack: Stack, count: int, **options: object) -> Iterator[list[Iterator[str]]]:
    """Open streams and give the lines of each; all are closed at the end."""
    with contextlib.ExitStack() as opened, ThreadPoolExecutor(count) as threads:
        # All at once, because each lasts for half a minute only.
        opening = [
            threads.submit(stack.get, "/status/live/", stream=True, **options) for _ in range(count)
        ]
        answers = [answer.result() for answer in opening]
        for answer in answers:
            opened.enter_context(answer)
            assert answer.headers["Content-Type"] == "text/event-stream"
        yield [answer.iter_lines(chunk_size=1, decode_unicode=True) for answer in answers]


def looks(lines: Iterator[str], count: int) -> list[int]:
    """Return the numbers of the next looks that a stream tells of."""
    numbers = (int(line.removeprefix("id: ")) for line in lines if line.startswith("id: "))
    return [next(numbers) for _ in range(count)]


def until(lines: Iterator[str], last: int) -> Iterator[int]:
    """Return the numbers of the next looks, up to this one."""
    number = 0
    while number < last:
        (number,) = looks(lines, 1)
        yield number


def test_all_streams_share_one_query_of_the_broker(laptop: Stack) -> None:
    def asked() -> int:
        """Count how often anybody asked how long a queue is."""
        stats = laptop.compose("exec", "--no-TTY", "broker", "redis-cli", "info", "commandstats")
        return int(re.search(r"cmdstat_llen:calls=(\d+)", stats)[1])

    costs = {}
    for listeners in (1, 10):
        with streams(laptop, listeners) as opened:
            begin = [looks(lines, 1)[0] for lines in opened]
            before = asked()
            last = max(begin) + 3
            told = [[*until(lines, last)] for lines in opened]
            costs[listeners] = (asked() - before) / (last - begin[0])
            for first, numbers in zip(begin, told, strict=True):
                assert numbers == [*range(first + 1, last + 1)]  # the same for all, none left out
    assert 0 < costs[10] < 3 * costs[1]


def test_listeners_are_bounded_and_a_closed_tab_frees_its_place(laptop: Stack, page: Page) -> None:
    forget_what_was_counted(laptop)
    with streams(laptop, 50) as opened:
        for lines in opened:
            looks(lines, 1)
        page.goto(f"{laptop.url}/status/")
        wait_for_summary(page, "50 pages are open already. This one tries again every 30 seconds.")
        looks(opened[0], 1)  # the others go on
    page.reload()
    wait_for_summary(page, UP)


# In production ------------------------------------------------------------------------------------


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
    return {f"{production.slug}_sessionid": production.python(code)}


def test_staff_sees_all_of_it_under_the_content_security_policy(
    production: Stack, staff: dict[str, str], page: Page
) -> None:
    cookies = [
        {"name": name, "value": value, "url": production.url} for name, value in staff.items()
    ]
    page.context.add_cookies(cookies)
    forget_what_was_counted(production)
    policy = page.goto(f"{production.url}/status/").headers["content-security-policy"]
    assert policy == "default-src 'self'; frame-ancestors 'none'; object-src 'none'"
    wait_for_summary(page, UP)
    card(page, "crawl").get_by_text("Send a task").click()
    card(page, "crawl").get_by_text(f"Done by crawl@{production.slug}.").wait_for()


def test_the_stream_is_for_staff(production: Stack) -> None:
    assert production.get("/status/live/").headers["Location"] == "/admin/login/?next=/status/live/"


def test_the_stream_passes_the_proxy_at_once(production: Stack, staff: dict[str, str]) -> None:
    with streams(production, 1, cookies=staff) as (lines,):
        events = [line for line in (next(lines) for _ in range(12)) if line.startswith("data: ")]
    state = json.loads(events[-1].removeprefix("data: "))
    assert list(state["queues"]) == ["default", "crawl", "notify"]
    assert set(state["services"]) == {
        *("proxy", "web-a", "web-b", "flower", "beat", "broker", "cache", "db"),
    }


def test_a_reload_ends_streams_and_waits_for_none(production: Stack, staff: dict[str, str]) -> None:
    def serving() -> set[str]:
        rows = production.containers()["web-a"].top(ps_args="-eo pid,args")["Processes"]
        return {pid for pid, command in rows if command.endswith("/gunicorn")}

    before = serving()
    with streams(production, 4, cookies=staff) as opened:  # two from each web
        for lines in opened:
            looks(lines, 1)
        production.compose("exec", "--no-TTY", "web-a", "bash", "-c", "kill -HUP 1")
        wait_for("the new process", lambda: serving() - before)
        # Alone, a stream would last twice as long.
        wait_for("the end of the old one", lambda: len(serving()) == len(before))
        for lines in opened:
            # and no broken end
            assert all(re.match(r"$|:|id:|data:|retry:", line) for line in lines)
