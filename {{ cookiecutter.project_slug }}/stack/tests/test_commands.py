import filecmp
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import current_app
from django.conf import settings
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError

from stack import brokers, checks, queues
from stack.celery.results import FAILED, Results
from stack.management.commands import publish
from stack.tasks import sample
from stack.testing import wait_for

QUEUE = settings.QUEUES[-1]


@pytest.fixture
def three_wait() -> None:
    """Three tasks in the last queue, and no worker."""
    current_app.control.purge()
    for _ in range(3):
        sample.apply_async(queue=QUEUE)


def test_queues_counts_what_waits(three_wait, capsys) -> None:
    call_command("queues", QUEUE)
    heading, row, *_ = capsys.readouterr().out.splitlines()
    fields = ["queue", "waiting", "oldest", "workers", "running", "done/min", "failed/min"]
    assert heading.split() == fields
    assert row.split()[:2] == [QUEUE, "3"]


def test_queues_shows_all_when_none_is_named(capsys) -> None:
    call_command("queues")
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows[: len(settings.QUEUES)]] == settings.QUEUES


def test_purge_queue_deletes_what_waits_there(three_wait, capsys) -> None:
    call_command("purge_queue", QUEUE, "--no-input")
    assert capsys.readouterr().out == f"Deleted 3 tasks from {QUEUE}.\n"
    call_command("purge_queue", QUEUE, "--yes")
    assert capsys.readouterr().out == f"Deleted 0 tasks from {QUEUE}.\n"


@pytest.mark.parametrize("answer", ["", "no", EOFError()])
def test_purge_queue_asks_first(three_wait, monkeypatch, answer: str | EOFError) -> None:
    def say(question: str) -> str:
        assert question == f"Delete 3 tasks from {QUEUE}, for good? [y/N] "
        if isinstance(answer, EOFError):
            raise answer
        return answer

    monkeypatch.setattr("builtins.input", say)
    with pytest.raises(CommandError, match="Nothing was deleted"):
        call_command("purge_queue", QUEUE)
    monkeypatch.setattr("builtins.input", lambda question: "y")
    call_command("purge_queue", QUEUE)


@pytest.mark.parametrize("command", ["queues", "purge_queue"])
def test_an_unknown_queue_is_refused(command: str) -> None:
    with pytest.raises(CommandError, match='There is no queue "unread", but default'):
        call_command(command, "unread")


@pytest.mark.parametrize(
    ("url", "hint"),
    [("", "docker compose ps broker"), ("redis://mine", "CELERY_BROKER_URL in .env")],
)
def test_a_broker_that_does_not_answer_is_looked_for_where_it_is(
    monkeypatch: pytest.MonkeyPatch, url: str, hint: str
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    command = [sys.executable, "-c", "from stack import brokers; print(brokers.NO_ANSWER)"]
    assert hint in subprocess.run(command, capture_output=True, text=True, check=True).stdout


# Queues that are gone -----------------------------------------------------------------------------

FIELDS = ["gone", "3", "-", "none", "-", "-", "-"]


@pytest.fixture
def gone() -> Iterator[str]:
    """A queue with three tasks that is not in QUEUES, as after a rename."""
    current_app.control.purge()
    defined = current_app.amqp.queues
    defined.add(brokers.current().queue("gone"))
    for steps, priority in [(1, 0), (2, 0), (3, 9)]:
        sample.apply_async(kwargs={"steps": steps}, queue="gone", priority=priority)
    del defined["gone"]
    yield "gone"
    with queues.connect() as connection:
        channel: Any = connection.default_channel
        channel.queue_purge("gone")


def taken(queue: str) -> list[int]:
    """Take all tasks from a queue; return the steps of each, in the order of their priorities."""
    found = []
    with queues.connect() as connection:
        channel: Any = connection.default_channel
        while message := channel.basic_get(queue, no_ack=True):
            assert message.delivery_info["exchange"] == queue
            assert message.delivery_info["routing_key"] == queue
            found.append(message.decode()[1]["steps"])
    return found


def test_queues_shows_one_that_holds_tasks_and_has_no_worker(gone: str, capsys) -> None:
    call_command("queues")
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines[len(settings.QUEUES)].split() == FIELDS
    assert lines[len(settings.QUEUES) + 1].startswith("gone is not in QUEUES: move its tasks, ")
    call_command("queues", QUEUE)
    assert "gone" not in capsys.readouterr().out


def test_move_queue_moves_all_and_keeps_their_order(gone: str, capsys) -> None:
    call_command("move_queue", gone, QUEUE)
    assert capsys.readouterr().out == f"Moved 3 tasks from gone to {QUEUE}.\n"
    assert taken(QUEUE) == [1, 2, 3]
    call_command("move_queue", gone, QUEUE)
    assert capsys.readouterr().out == f"Moved 0 tasks from gone to {QUEUE}.\n"


def test_move_queue_takes_more_than_one_step(gone: str, monkeypatch) -> None:
    monkeypatch.setattr(brokers.current(), "STEP", 1)
    with queues.connect() as connection:
        assert list(queues.move(connection, gone, QUEUE)) == [1, 2, 3]
    assert taken(QUEUE) == [1, 2, 3]


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (("unread", QUEUE), 'The broker has no queue "unread"'),
        ((QUEUE, "unread"), 'There is no queue "unread", but default'),
        ((QUEUE, QUEUE), "Name two queues"),
    ],
)
def test_move_queue_refuses_what_it_cannot_do(names: tuple, error: str) -> None:
    with pytest.raises(CommandError, match=error):
        call_command("move_queue", *names)


def test_purge_queue_takes_one_that_is_not_in_queues(gone: str, capsys) -> None:
    call_command("purge_queue", gone, "--no-input")
    assert capsys.readouterr().out == "Deleted 3 tasks from gone.\n"
    with pytest.raises(CommandError, match='There is no queue "gone"'):
        call_command("purge_queue", gone, "--no-input")


def test_a_check_finds_one_that_holds_tasks(gone: str, monkeypatch) -> None:
    (warning,) = checks.no_task_is_stranded()
    assert (warning.id, '"gone" holds 3 tasks' in warning.msg) == ("stack.W001", True)
    with pytest.raises(CommandError):
        call_command("check", tags=["queues"], fail_level="WARNING")
    call_command("check")  # asks no broker
    with monkeypatch.context() as of_release:
        of_release.setenv("REFUSE_STRANDED", "true")
        with pytest.raises(SystemCheckError, match='"gone" holds 3 tasks'):
            call_command("check", tags=["queues"])
    call_command("move_queue", gone, QUEUE)
    assert checks.no_task_is_stranded() == []
    call_command("check", tags=["queues"], fail_level="WARNING")


def test_a_check_without_a_broker_fails_nothing(monkeypatch) -> None:
    monkeypatch.setattr(current_app.conf, "broker_write_url", "redis://localhost:1/0")
    (info,) = checks.no_task_is_stranded()
    assert info.id == "stack.I001"


# Tasks --------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_failed() -> None:
    """A result back end that knows of no failure."""
    assert isinstance(current_app.backend, Results)
    current_app.backend.client.delete(FAILED)


def wait_until_failed(*tasks: str) -> None:
    """Wait until tasks are on the list; AssertionError after two minutes."""
    assert isinstance(current_app.backend, Results)
    failed = current_app.backend.failed
    wait_for(lambda: failed().keys() >= set(tasks))


def fail() -> str:
    """Run the sample task so that it fails in the last queue; return its id."""
    result = sample.apply_async(kwargs={"steps": 2, "pause": 0, "fail": True}, queue=QUEUE)
    assert isinstance(result.get(timeout=120, propagate=False), Exception)
    return result.id


@pytest.mark.django_db
def test_failed_shows_the_last_ones_and_sends_one_again(nothing_failed, worker, capsys) -> None:
    sample.apply_async(kwargs={"steps": 1, "pause": 0}, queue=QUEUE).get(timeout=120)
    first, second = fail(), fail()
    call_command("failed")
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["failed", "id", "task", "queue", "error"]
    assert [row.split()[2:5] for row in rows] == [
        [task, "stack.tasks.sample", QUEUE] for task in (second, first)
    ]
    assert rows[0].endswith("SampleError: This task was sent to fail.")
    call_command("failed", limit=1)
    assert capsys.readouterr().out.splitlines()[2:] == ["1 more: --limit 2"]

    call_command("failed", retry=first)
    assert capsys.readouterr().out == f"stack.tasks.sample {first} is sent again.\n"
    wait_until_failed(first)
    meta = current_app.backend.get_task_meta(first)
    assert meta["kwargs"] == {"steps": 2, "pause": 0, "fail": True}
    assert meta["queue"] == QUEUE
    assert meta["request_id"] == first
    call_command("failed")
    assert [row.split()[2] for row in capsys.readouterr().out.splitlines()[1:]] == [first, second]


@pytest.mark.django_db
def test_failed_sends_all_again_once(nothing_failed, worker, capsys) -> None:
    tasks = {fail(), fail()}
    call_command("failed", retry="all")
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()} == tasks
    wait_until_failed(*tasks)
    call_command("failed")
    assert {row.split()[2] for row in capsys.readouterr().out.splitlines()[1:]} == tasks


def test_failed_says_when_there_is_nothing(nothing_failed, capsys) -> None:
    call_command("failed")
    assert capsys.readouterr().out == "No task has failed.\n"
    with pytest.raises(CommandError, match="No failed task has the id x"):
        call_command("failed", retry="x")


@pytest.mark.django_db
def test_arguments_are_kept_of_failed_tasks_only(worker) -> None:
    done = sample.apply_async(kwargs={"steps": 1, "pause": 0}, queue=QUEUE)
    done.get(timeout=120)
    assert "kwargs" not in current_app.backend.get_task_meta(done.id)
    assert "kwargs" in current_app.backend.get_task_meta(fail())


def inspect(task_id: str, capsys) -> dict[str, str]:
    """Return the rows of the command."""
    call_command("inspect_task", task_id)
    rows = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    return {name: text for name, _, text in (row.partition(" ") for row in rows)}


@pytest.mark.django_db
def test_inspect_task_tells_what_became_of_it(worker, capsys) -> None:
    rows = inspect(fail(), capsys)
    assert rows["state"].strip() == "FAILURE"
    assert rows["queue"].strip() == QUEUE
    assert rows["error"].strip() == "SampleError: This task was sent to fail."
    done = sample.apply_async(kwargs={"steps": 1, "pause": 0}, queue=QUEUE)
    done.get(timeout=120)
    rows = inspect(done.id, capsys)
    assert rows["state"].strip() == "SUCCESS"
    assert "Done by" in rows["result"]


def test_inspect_task_says_what_it_cannot_know(capsys) -> None:
    call_command("inspect_task", str(uuid.uuid4()))
    assert "No worker has it and there is no result" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "rate", "error"),
    [
        ("no.such.task", "1/s", 'There is no task "no.such.task", but '),
        ("stack.tasks.sample", "fast", '"fast" is no rate'),
        ("stack.tasks.sample", "-1/s", '"-1/s" is no rate'),
        ("stack.tasks.sample", "5", '"5" is no rate'),
        ("stack.tasks.sample", "1/s", "No worker obeys"),
    ],
)
def test_rate_limit_refuses_what_nobody_can_obey(task: str, rate: str, error: str) -> None:
    with pytest.raises(CommandError, match=error):
        call_command("rate_limit", task, "--", rate)


class Publishing:
    """Two folders in which `publish` works, as a version with static files after the other does."""

    def __init__(self, folder: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.image, self.published = folder / "image", folder / "published"
        self.published.mkdir()
        self.monkeypatch = monkeypatch
        settings.STATIC_ROOT = self.image
        monkeypatch.setattr(publish, "PUBLISHED", self.published)

    def version(self, files: dict[str, str], *, live: bool = True) -> None:
        """Publish a version's files, all of one time, as images have them."""
        shutil.rmtree(self.image, ignore_errors=True)
        for name, text in files.items():
            path = self.image / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.utime(path, (1, 1))
        self.monkeypatch.setenv("LIVE", str(live))
        filecmp.clear_cache()
        call_command("publish")

    def there(self) -> dict[str, str]:
        """Return the text of each published file."""
        return {
            path.relative_to(self.published).as_posix(): path.read_text()
            for path in self.published.rglob("*")
            if path.is_file()
        }

    def etag(self, name: str) -> tuple[int, int]:
        """Return what nginx makes an ETag of."""
        found = (self.published / name).stat()
        return int(found.st_mtime), found.st_size


@pytest.fixture
def publishing(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Publishing:
    """A volume without static files."""
    return Publishing(tmp_path, settings, monkeypatch)


def test_publish_replaces_a_file_without_a_hash_and_nginx_sees_that(publishing) -> None:
    publishing.version({"a.css": "old", "b/b.css": "same", "staticfiles.json": "{}"})
    before = publishing.etag("a.css"), publishing.etag("b/b.css")
    publishing.version({"a.css": "new", "b/b.css": "same"})
    assert publishing.there() == {"a.css": "new", "b/b.css": "same"}
    assert publishing.etag("a.css") != before[0]
    assert publishing.etag("b/b.css") == before[1]


def test_before_a_version_is_live_publish_only_adds(publishing) -> None:
    publishing.version({"a.css": "old", "a.css.gz": "old"})
    publishing.version({"a.css": "new", "a.1234567890ab.css": "new"}, live=False)
    assert publishing.there() == {"a.css": "old", "a.css.gz": "old", "a.1234567890ab.css": "new"}
    publishing.version({"a.css": "new", "a.1234567890ab.css": "new"})
    # nginx prefers a compressed one, which this version does not have.
    assert publishing.there() == {"a.css": "new", "a.1234567890ab.css": "new"}


def test_publish_deletes_what_no_version_had_for_long(publishing, monkeypatch) -> None:
    publishing.version({"a.css": "old", "b.css": "old"})
    publishing.version({"b.css": "old"})
    assert set(publishing.there()) == {"a.css", "b.css"}
    time.sleep(0.1)  # the kernel's clock for files is coarser
    now = time.time()
    time.sleep(0.1)
    monkeypatch.setattr(publish, "time", SimpleNamespace(time=lambda: now + publish.KEPT))
    publishing.version({"b.css": "old"})
    assert set(publishing.there()) == {"b.css"}
