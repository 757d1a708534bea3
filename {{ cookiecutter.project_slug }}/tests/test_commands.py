import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from config.celery import app
from core.tasks import sample

QUEUE = settings.QUEUES[-1]


@pytest.fixture
def three_wait() -> None:
    """Three tasks in the last queue, and no worker."""
    app.control.purge()
    for _ in range(3):
        sample.apply_async(queue=QUEUE)


def test_queues_counts_what_waits(three_wait, capsys) -> None:
    call_command("queues", QUEUE)
    heading, row, *_ = capsys.readouterr().out.splitlines()
    assert heading.split() == ["queue", "waiting", "oldest", "workers", "running", "done/min"]
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
