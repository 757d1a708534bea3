"""The page /status/failed/, what ./manage.py failed has in common with it, and the list behind both."""

import html
import logging
import re
import time
from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from celery import current_app, shared_task
from django.core.management import CommandError, call_command
from django.test import Client

from stack import brokers, failed, queues
from stack.celery.results import FAILED, LONGEST, TAKEN, Results
from stack.dashboard import failures
from stack.testing import wait_for

pytestmark = pytest.mark.django_db(transaction=True)
PAGE = "/status/failed/"
CHANGE = "/status/failed/change/"


@shared_task
def explode(size: int = 0, **more: object) -> None:
    """Fail; ValueError with a text of so many characters."""
    raise ValueError("<b>" + "x" * size)


@shared_task
def stumble() -> None:
    """Fail in another way."""
    raise KeyError("missing")


@pytest.fixture(autouse=True)
def backend() -> Results:
    """The result backend, which knows of no failure."""
    found = current_app.backend
    assert isinstance(found, Results)
    found.client.delete(FAILED, TAKEN)
    return found


def fail(task: Any = explode, *args: object, **options: Any) -> str:
    """Run a task that fails; return its id."""
    result = task.apply_async(args, **options)
    result.get(timeout=120, propagate=False)
    return result.id


def shown(client: Client, query: str = "") -> str:
    """Return the text of the page, in one line."""
    answer = client.get(PAGE + query)
    assert answer.status_code == 200
    text = re.sub(r"<[^>]+>", " ", answer.content.decode())
    return " ".join(html.unescape(text).split())


def kinds() -> dict[str, str]:
    """Return the kind of each task by its name."""
    return {entry.task.rpartition(".")[2]: entry.kind for entry in failed.tasks()}


def change(client: Client, do: str, **form: str) -> str:
    """Send a form; return what the page then shows."""
    answer = client.post(CHANGE, {"do": do} | form)
    assert (answer.status_code, answer.headers["Location"].partition("?")[0]) == (302, PAGE)
    return shown(client)


def test_it_shows_what_when_and_why(admin_client: Client, worker) -> None:
    task = fail(explode, 3, kwargs={"order": "ü", "secret": "<script>"})
    text = shown(admin_client)
    assert f"{__name__}.explode ValueError in default: 1 task, the newest 20" in text
    assert f"{task} ValueError: <b>xxx" in text
    assert 'args [3] kwargs {"order": "ü", "secret": "<script>"}' in text
    assert "Traceback (most recent call last)" in text
    assert "0 retries" in text
    page = admin_client.get(PAGE).content.decode()
    assert "<script" not in page
    assert " style=" not in page


def test_kinds_are_grouped_by_task_queue_and_error(admin_client: Client, worker) -> None:
    for _ in range(2):
        fail(explode)
    fail(stumble)
    text = shown(admin_client)
    assert re.search(r"ValueError in default: 2 tasks, the newest \S+ \S+, the oldest ", text)
    assert "Send all 2 again" in text
    assert "Drop all 2" in text
    assert "Send all 1" not in text
    assert "stumble KeyError in default: 1 task," in text
    alone = shown(admin_client, f"?kind={kinds()['stumble']}")
    assert "stumble" in alone
    assert "explode" not in alone
    assert "Show all kinds" in alone
    # That of a kind that is gone shows the rest.
    assert "stumble" in shown(admin_client, "?kind=0123456789abcdef&page=x")


def test_a_kind_has_pages(admin_client: Client, worker, monkeypatch) -> None:
    monkeypatch.setattr(failures, "PAGE", 3)
    monkeypatch.setattr(failures, "FEW", 2)
    tasks = [fail(stumble) for _ in range(4)]
    last = fail(explode)
    text = shown(admin_client)
    assert [task for task in tasks if task in text] == tasks[2:]
    assert last in text
    assert "Show all 4" in text
    monkeypatch.setattr(failures, "PAGE", 1)
    assert [task for task in [*tasks, last] if task in shown(admin_client)] == [last]
    monkeypatch.setattr(failures, "PAGE", 3)
    query = f"?kind={kinds()['stumble']}"
    for page, there in (("", tasks[1:]), ("&page=2", tasks[:1])):
        text = shown(admin_client, query + page)
        assert [task for task in tasks if task in text] == there
        assert ("Older" in text, "Newer" in text) == (not page, bool(page))


def test_arguments_of_a_megabyte_are_shortened_here_and_in_the_command(
    admin_client: Client, worker, capsys
) -> None:
    task = fail(explode, 1_000_000, kwargs={"text": "y" * 1_000_000})
    page = admin_client.get(PAGE).content
    assert len(page) < 50_000
    assert b"(1,000,012 characters)" in page
    call_command("inspect_task", task)
    shorter = capsys.readouterr().out
    assert re.search(r'kwargs +{"text": "y{900}', shorter)
    assert "(1,000,012 characters)" in shorter


def test_a_date_among_the_arguments_is_shown(admin_client: Client, worker, capsys) -> None:
    task = fail(explode, kwargs={"day": datetime.fromisoformat("2026-01-02T00:00:00Z")})
    assert 'kwargs {"day": "2026-01-02 00:00:00+00:00"}' in shown(admin_client)
    call_command("inspect_task", task)
    assert '"2026-01-02' in capsys.readouterr().out


def test_what_a_producer_hides_stays_hidden_also_when_it_is_sent_again(
    admin_client: Client, worker, backend: Results, capsys
) -> None:
    task = fail(explode, kwargs={"card": "4242"}, kwargsrepr="{'card': '****'}")

    def check() -> None:
        text = shown(admin_client)
        assert "kwargs {'card': '****'}" in text
        assert "4242" not in text
        call_command("inspect_task", task)
        assert "4242" not in capsys.readouterr().out

    check()
    first = backend.get_task_meta(task)["date_done"]
    change(admin_client, "retry", id=task)
    wait_for(lambda: failed_again(backend, task, first))
    assert backend.get_task_meta(task)["kwargs"] == {"card": "4242"}
    check()


def failed_again(backend: Results, task: str, first: str) -> bool:
    """Return whether a task has failed after `first`."""
    found = backend.failed()
    return task in found and found[task]["date_done"] != first


def test_one_is_sent_again_once(admin_client: Client, worker, backend: Results) -> None:
    task = fail()
    first = backend.get_task_meta(task)["date_done"]
    assert "1 task sent again." in change(admin_client, "retry", id=task)
    wait_for(lambda: failed_again(backend, task, first))
    assert backend.client.zcard(TAKEN) == 0


def test_a_double_click_sends_once_and_says_so(
    admin_client: Client, backend: Results, worker
) -> None:
    task = fail(stumble)
    assert backend.take_failed(task)  # another is about to send it
    text = change(admin_client, "retry", id=task)
    assert f"{task} has been sent again or dropped meanwhile." in text
    assert task not in text.replace(f"{task} has", "")


def test_a_dropped_one_does_not_come_back_and_its_result_stays(
    admin_client: Client, worker, backend: Results, capsys
) -> None:
    task = fail()
    assert "1 task dropped." in change(admin_client, "drop", id=task)
    assert "No task has failed." in shown(admin_client)
    text = change(admin_client, "drop", id=task)
    assert f"{task} has been sent again or dropped meanwhile." in text
    call_command("inspect_task", task)
    assert "ValueError" in capsys.readouterr().out
    assert backend.client.zcard(TAKEN) == 0


def test_one_whose_producer_was_killed_is_on_the_list_again(worker, backend: Results) -> None:
    task = fail()
    assert backend.take_failed(task)
    assert backend.failed() == {}
    backend.client.zadd(TAKEN, {task: time.time() - LONGEST - 1})
    assert [*backend.failed()] == [task]


def test_all_of_a_kind_are_changed_in_a_second_step(
    admin_client: Client, worker, backend: Results, caplog
) -> None:
    tasks = {fail(), fail()}
    other = fail(stumble)
    kind = kinds()["explode"]
    asked = admin_client.post(CHANGE, {"do": "drop", "kind": kind})
    assert asked.status_code == 200
    assert "Drop 2 tasks?" in asked.content.decode()
    assert backend.client.zcard(FAILED) == 3, "the first step changed something"
    field = re.search(r'name="until" value="(.+?)"', asked.content.decode())
    assert field
    until = html.unescape(field[1])
    later = fail()
    with caplog.at_level(logging.INFO, "stack.failed"):
        text = change(admin_client, "drop", kind=kind, until=until, sure="")
    assert "2 tasks dropped." in text
    assert {*backend.failed()} == {other, later}
    logged = [record for record in caplog.records if record.name == "stack.failed"]
    user = str(admin_client.session["_auth_user_id"])
    assert {(vars(record)["user"], vars(record)["task_id"]) for record in logged} == {
        (user, task) for task in tasks
    }
    text = change(admin_client, "drop", kind=kind, until=until, sure="")
    assert "Nothing was done: another has sent them again or dropped them meanwhile." in text


def test_all_of_a_kind_are_sent_again(admin_client: Client, worker, backend: Results) -> None:
    tasks = {fail(), fail()}
    first = {task: backend.get_task_meta(task)["date_done"] for task in tasks}
    until = max(entry.at for entry in failed.tasks()).isoformat()
    text = change(admin_client, "retry", kind=kinds()["explode"], until=until, sure="")
    assert "2 tasks sent again." in text
    wait_for(lambda: all(failed_again(backend, task, first[task]) for task in tasks))


def test_when_the_broker_refuses_the_rest_stays(
    admin_client: Client, worker, backend: Results, monkeypatch
) -> None:
    tasks = {fail(), fail()}
    until = max(entry.at for entry in failed.tasks()).isoformat()
    monkeypatch.setitem(current_app.conf, "task_create_missing_queues", False)
    for task in tasks:
        key = backend.get_key_for_task(task)
        meta = backend.decode(backend.client.get(key)) | {"queue": "gone"}
        backend.client.set(key, backend.encode(meta))
    kind = kinds()["explode"]
    text = change(admin_client, "retry", kind=kind, until=until, sure="")
    assert "The rest is unchanged: " in text
    assert {*backend.failed()} == tasks


@pytest.mark.parametrize(
    "form",
    [{}, {"do": "retry"}, {"do": "burn", "id": "x"}, {"id": "x"}, {"do": "drop", "kind": ""}],
)
def test_a_form_that_says_nothing_is_refused(admin_client: Client, form: dict[str, str]) -> None:
    assert admin_client.post(CHANGE, form).status_code == 400


@pytest.mark.parametrize("task", ["x", "../failed", "celery-task-meta-x", "a" * 5000, "\x00\n<b>"])
def test_an_id_of_no_failed_task_changes_nothing(
    admin_client: Client, backend: Results, task: str
) -> None:
    before = backend.client.dbsize()
    assert failed.GONE in change(admin_client, "retry", id=task)
    assert failed.GONE in change(admin_client, "drop", id=task)
    assert backend.client.dbsize() == before


def test_a_look_changes_nothing(admin_client: Client, worker, backend: Results) -> None:
    task = fail()
    query = {"do": "drop", "id": task, "kind": kinds()["explode"], "sure": ""}
    assert admin_client.get(CHANGE, query).status_code == 405
    assert admin_client.get(PAGE, query).status_code == 200
    assert admin_client.post(PAGE, query).status_code == 405
    assert [*backend.failed()] == [task]


def test_only_staff_may_look_and_change(client: Client, django_user_model, worker, backend) -> None:
    task = fail()
    client.force_login(django_user_model.objects.create_user("visitor"))
    for answer in (client.get(PAGE), client.post(CHANGE, {"do": "drop", "id": task})):
        assert answer.headers["Location"].startswith("/admin/login/?next=/status/failed/")
    assert [*backend.failed()] == [task]


def test_a_form_of_another_site_is_refused(admin_user, worker, backend: Results) -> None:
    task = fail()
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert client.post(CHANGE, {"do": "drop", "id": task}).status_code == 403
    assert [*backend.failed()] == [task]


def test_it_says_what_cannot_be_read(admin_client: Client, backend, monkeypatch) -> None:
    app: Any = current_app
    monkeypatch.setattr(app._get_current_object(), "_backend_cache", object())
    assert failed.ONLY_REDIS in shown(admin_client)
    assert failed.ONLY_REDIS in change(admin_client, "drop", id="x")


# The command --------------------------------------------------------------------------------------


def test_the_command_changes_those_of_a_task_only(worker, backend: Results, capsys) -> None:
    first, other, second = fail(), fail(stumble), fail()
    name = f"{__name__}.explode"
    call_command("failed", task=name)
    printed = capsys.readouterr().out
    assert (first in printed, second in printed, other in printed) == (True, True, False)
    call_command("failed", "--drop", "all", "--task", name, "--no-input")
    assert capsys.readouterr().out == f"{name} {first} is dropped.\n{name} {second} is dropped.\n"
    call_command("failed", "--drop", "all", "--task", name, "--no-input")
    assert capsys.readouterr().out == ""
    call_command("failed", "--retry", "all", "--task", name)
    assert [*backend.failed()] == [other]
    call_command("failed", "--drop", other)
    assert capsys.readouterr().out == f"{__name__}.stumble {other} is dropped.\n"
    assert backend.failed() == {}


def test_the_command_asks_before_it_drops_all(worker, backend: Results, monkeypatch) -> None:
    task = fail()
    asked: list[str] = []

    def say(question: str) -> str:
        asked.append(question)
        return ""

    monkeypatch.setattr("builtins.input", say)
    with pytest.raises(CommandError, match=r"Nothing was dropped\."):
        call_command("failed", "--drop", "all")
    assert asked == ["Drop all failed tasks from the list? [y/N] "]
    assert [*backend.failed()] == [task]


# Dead letters, where the broker has some ----------------------------------------------------------


def test_without_dead_letters_there_are_none(admin_client: Client, capsys) -> None:
    assert failed.letters() == ([], 0)
    with queues.connect() as connection:
        assert brokers.current().dead_letters(connection) == 0
    call_command("failed", "--dead-letters")
    assert capsys.readouterr().out == "There are no dead letters.\n"
    text = change(admin_client, "drop", id="0123456789abcdef", dead="")
    assert "Nothing was done" in text


@pytest.fixture
def unreadable() -> Iterator[None]:
    """Two dead letters of Redis."""
    if brokers.current().DEAD_LETTERS != "redis_dead_letters":
        pytest.skip("another broker")
    with queues.connect() as connection:
        channel: Any = connection.default_channel
        for body in (b"no JSON", b"\xff"):
            channel._set_aside("notes", "tag", body, ValueError("why"))
        yield
        channel.plain.delete(channel.dead_letters)


def test_what_redis_has_set_aside_is_shown_and_dropped_but_not_sent(
    unreadable: None, admin_client: Client, capsys
) -> None:
    text = shown(admin_client)
    assert "no JSON (ValueError('why'))" in text
    with queues.connect() as connection:
        assert brokers.current().dead_letters(connection) == 2
    assert "can be dropped, but not sent again" in text
    call_command("failed", "--dead-letters", "--retry", "all")
    assert capsys.readouterr().out.count("is not sent again: no worker can read it.") == 2
    entries, count = failed.letters()
    assert ([entry.queue for entry in entries], count) == (["notes", "notes"], 2)
    call_command("failed", "--drop", entries[0].id)
    assert failed.letters()[1] == 1
    call_command("failed", "--dead-letters", "--drop", "all", "--yes")
    assert failed.letters() == ([], 0)


def test_a_dead_letter_is_an_entry() -> None:
    letter = SimpleNamespace(
        key="0123456789abcdef",
        task_id="",
        task="no task",
        queue="notes",
        reason="delivery_limit",
        at=datetime.fromisoformat("2026-01-02T00:00:00Z"),
        meta={"args": None, "body": "\x00"},
    )
    entry = failed.of_letter(letter)
    assert (entry.task_id, entry.dead, entry.arguments) == (letter.key, True, {"body": "\x00"})
    assert entry.kind != failed.of_letter(SimpleNamespace(**vars(letter) | {"queue": "x"})).kind
