"""A task of a transaction that is committed is sent, whatever happens to the broker or to this process."""

import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from celery import current_app, shared_task
from django.apps import apps
from django.contrib import admin
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, transaction
from django.test import modify_settings
from django.utils import timezone
from kombu import Connection

from stack import logs, outbox
from stack.celery.task import Task
from stack.checks import outbox_is_scheduled
from stack.testing import wait_for

pytestmark = pytest.mark.django_db(transaction=True)

APP = "stack.outbox"
SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module", autouse=True)
def app(django_db_setup: None, django_db_blocker) -> Iterator[None]:
    """Install the app, unless the project has done so."""
    if apps.is_installed(APP):
        yield
        return
    with modify_settings(INSTALLED_APPS={"append": APP}):
        with django_db_blocker.unblock():
            call_command("migrate", "stack_outbox", verbosity=0)
            messages().delete()  # of a run that was killed
        yield
        with django_db_blocker.unblock():
            call_command("migrate", "stack_outbox", "zero", verbosity=0)
        if admin.site.is_registered(messages().model):
            admin.site.unregister(messages().model)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with an empty broker that was not unavailable."""
    current_app.control.purge()
    monkeypatch.setattr(outbox, "pause_until", 0)


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tasks that were to be sent, to a broker that does not listen."""

    def send(self: Task, *args: Any, **options: Any) -> Any:
        tasks.append(options["task_id"])
        return apply_async(self, *args, **options, connection=nowhere, retry=False)

    tasks: list[Any] = []
    apply_async = Task.apply_async
    nowhere = Connection("redis://127.0.0.1:1", transport_options={"max_retries": 0})
    monkeypatch.setattr(Task, "apply_async", send)
    return tasks


@shared_task
def keep(value: Any = None) -> None:
    """Keep what a worker makes of the argument."""
    cache.set("kept", repr(value))


def messages() -> Any:
    """Return the rows."""
    from stack.outbox.models import Message

    return Message.objects.all()


def received() -> list[Any]:
    """Take all messages from the broker; return their headers."""
    with current_app.connection_for_read() as broker:
        queue = current_app.amqp.queues["default"](broker.default_channel)
        return [message.headers for message in iter(lambda: queue.get(no_ack=True), None)]


def ids() -> list[str]:
    """Take all messages from the broker; return the ids of their tasks."""
    return [headers["id"] for headers in received()]


def make_overdue() -> None:
    """Let all rows have waited for a while."""
    messages().update(created_at=timezone.now() - timedelta(minutes=2))


def send_overdue() -> None:
    """Do what beat has a worker do every minute."""
    from stack.outbox import tasks

    tasks.send_overdue()


def test_a_task_is_sent_after_the_commit() -> None:
    with transaction.atomic():
        task_id = outbox.delay_on_commit(keep, 1)
        assert (messages().count(), ids()) == (1, [])
    assert (messages().count(), ids()) == (0, [task_id])


def test_without_a_transaction_it_is_sent_at_once() -> None:
    task_id = outbox.delay_on_commit(keep, value=1)
    assert (messages().count(), ids()) == (0, [task_id])


def test_nothing_is_left_of_a_transaction_that_is_rolled_back() -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        outbox.delay_on_commit(keep)
        raise ZeroDivisionError
    assert (messages().count(), ids()) == (0, [])


def test_without_a_broker_the_row_stays_and_is_sent_later(
    attempts: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with transaction.atomic():
        first = outbox.delay_on_commit(keep)
        second = outbox.delay_on_commit(keep)
    assert attempts == [first]  # a request waits for the broker once
    assert [message.task_id for message in messages()] == [first, second]
    assert f"{__name__.rpartition('.')[2]}.keep[{first}] is not sent" in caplog.text
    make_overdue()
    send_overdue()
    assert (attempts, messages().count()) == ([first, first, second], 2)
    monkeypatch.undo()
    send_overdue()
    assert (messages().count(), ids()) == (0, [first, second])


def test_a_row_that_is_not_overdue_is_left_to_its_own_transaction(attempts: list[Any]) -> None:
    task_id = outbox.delay_on_commit(keep)
    send_overdue()
    assert attempts == [task_id]


def test_a_process_that_dies_before_it_deletes_the_row_sends_twice_with_the_same_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*args: object) -> None:
        raise SystemExit

    monkeypatch.setattr(messages().model, "delete", die)
    with pytest.raises(SystemExit):
        outbox.delay_on_commit(keep)
    monkeypatch.undo()
    make_overdue()
    send_overdue()
    first, second = ids()
    assert (messages().count(), first) == (0, second)


def test_two_runs_at_the_same_time_send_each_task_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        both.wait()
        send_overdue()
        connection.close()

    def send_slowly(*args: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return apply_async(*args, **options)

    with transaction.atomic():
        expected = [outbox.delay_on_commit(keep, number) for number in range(20)]
        monkeypatch.setattr(outbox, "pause_until", time.monotonic() + 60)
    make_overdue()
    apply_async = Task.apply_async
    monkeypatch.setattr(Task, "apply_async", send_slowly)
    both = threading.Barrier(2)
    runs = [threading.Thread(target=run) for _ in range(2)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert (messages().count(), sorted(ids())) == (0, sorted(expected))


def test_a_run_does_not_wait_for_a_row_that_another_one_sends(
    attempts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold() -> None:
        with transaction.atomic():
            messages().select_for_update().get(task_id=first)
            locked.set()
            done.wait(5)
        connection.close()

    first, second = outbox.delay_on_commit(keep), outbox.delay_on_commit(keep)
    monkeypatch.undo()
    make_overdue()
    locked, done = threading.Event(), threading.Event()
    other = threading.Thread(target=hold)
    other.start()
    locked.wait(60)
    try:
        send_overdue()
        assert [message.task_id for message in messages()] == [first]
    finally:
        done.set()
        other.join()
    assert ids() == [second]


def test_a_task_that_cannot_be_sent_is_logged_and_no_obstacle(
    caplog: pytest.LogCaptureFixture,
) -> None:
    messages().create(name="shop.tasks.renamed", task_id="1", body="[[], {}, {}]")
    outbox.apply_async_on_commit(keep, queue="none", task_id="2")
    task_id = outbox.delay_on_commit(keep)
    assert ids() == [task_id]
    messages().create(name=keep.name, task_id="3", body="[[], {}, {}]")
    make_overdue()
    send_overdue()
    assert (ids(), [message.task_id for message in messages()]) == (["3"], ["1", "2"])
    assert "shop.tasks.renamed[1] is not sent, and stays in the outbox: " in caplog.text


def test_a_task_that_json_cannot_express_is_refused_before_the_commit() -> None:
    with pytest.raises(TypeError), transaction.atomic():
        outbox.delay_on_commit(keep, object())


def test_an_argument_keeps_its_type(worker: None) -> None:
    value = [uuid.uuid4(), datetime(2026, 1, 2, 3, 4, 5), Decimal("0.10"), "\0", None]
    cache.delete("kept")
    outbox.delay_on_commit(keep, value)
    assert wait_for(lambda: cache.get("kept")) == repr(value)


def test_options_count_from_the_first_attempt(
    attempts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = logs.fields.set({"request_id": "abc"})
    now = timezone.now()
    options: dict[str, Any] = {"countdown": 3600, "expires": 7200, "task_id": "mine"}
    assert outbox.apply_async_on_commit(keep, (1,), **options) == "mine"
    logs.fields.reset(token)
    monkeypatch.undo()
    make_overdue()
    time.sleep(0.5)
    send_overdue()
    (headers,) = received()
    assert (headers["id"], headers["request_id"]) == ("mine", "abc")
    for name, seconds in (("eta", 3600), ("expires", 7200)):
        late = datetime.fromisoformat(headers[name]) - now - seconds * SECOND
        assert timedelta() <= late < SECOND / 2, name


def test_an_eager_task_needs_no_broker(settings) -> None:
    settings.CELERY_TASK_ALWAYS_EAGER = True
    cache.delete("kept")
    with transaction.atomic():
        outbox.delay_on_commit(keep, 1)
        assert (cache.get("kept"), messages().count()) == (None, 0)
    assert cache.get("kept") == "1"


@pytest.mark.django_db
def test_a_test_within_a_transaction_runs_the_commit(
    django_capture_on_commit_callbacks,
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        task_id = outbox.delay_on_commit(keep)
    assert (messages().count(), ids()) == (0, [task_id])


def test_its_migrations_are_complete_and_have_no_problem() -> None:
    call_command("makemigrations", "stack_outbox", "--check", "--dry-run")
    call_command("lint_migrations", "stack/outbox/migrations/0001_initial.py")


def test_without_a_schedule_it_is_an_error(settings) -> None:
    entry = {"task": "stack.outbox.tasks.send_overdue", "schedule": 60}
    settings.CELERY_BEAT_SCHEDULE = {}
    assert [error.id for error in outbox_is_scheduled()] == ["stack.E006"]
    settings.CELERY_BEAT_SCHEDULE = {"send-outbox": entry}
    assert outbox_is_scheduled() == []


def test_where_it_is_not_installed_it_says_so() -> None:
    with modify_settings(INSTALLED_APPS={"remove": APP}):
        with pytest.raises(ImproperlyConfigured, match='Add "stack.outbox" to INSTALLED_APPS'):
            outbox.delay_on_commit(keep)
        assert outbox_is_scheduled() == []
