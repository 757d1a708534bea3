"""What an operator asks of the tasks, and tells them, with ./manage.py."""

import re
import time

import pytest

from .stack import Stack, wait_for


def refused(stack: Stack, *arguments: str) -> str:
    """Run a command that ends with an error; return its one sentence."""
    with pytest.raises(AssertionError) as error:
        stack.manage(*arguments)
    (sentence,) = re.findall("CommandError: (.*)$", str(error.value), re.MULTILINE)
    return sentence


def inspect(stack: Stack, task: str) -> dict[str, str]:
    """Return what inspect_task has in its rows."""
    rows = stack.manage("inspect_task", task).partition("\n\n")[0].splitlines()
    return dict(row.split(maxsplit=1) for row in rows)


def failed(stack: Stack) -> list[list[str]]:
    """Return the rows of failed: id, task, queue, error."""
    _, *rows = stack.manage("failed").splitlines()
    return [row.split(maxsplit=5)[2:] for row in rows]


@pytest.fixture
def nothing_failed(production: Stack) -> None:
    """No task is known to have failed."""
    production.python("from config.celery import app; app.backend.client.delete('failed')")


@pytest.mark.parametrize(
    "name", ["failed", "inspect_task", "purge_queue", "queues", "rate_limit", "sample"]
)
def test_each_explains_itself(production: Stack, name: str) -> None:
    printed = production.manage(name, "--help")
    description = printed.split("\n\n")[1]
    assert len(description) > 40
    assert description.endswith(".")


def test_failed_tasks_are_shown_and_sent_again_with_the_same_arguments(
    production: Stack, nothing_failed: None
) -> None:
    assert production.manage("failed") == "No task has failed.\n"
    first = production.send("crawl", steps=2, pause=0, fail=True)
    wait_for("it failed", lambda: len(failed(production)) == 1)
    second = production.send("notify", steps=2, pause=0, fail=True)
    wait_for("both failed", lambda: len(failed(production)) == 2)
    error = "SampleError: This task was sent to fail."
    assert failed(production) == [
        [second, "stack.tasks.sample", "notify", error],
        [first, "stack.tasks.sample", "crawl", error],
    ]

    printed = production.manage("failed", "--retry", first)
    assert printed == f"stack.tasks.sample {first} is sent again.\n"
    wait_for("it failed again", lambda: failed(production)[0][0] == first)
    assert failed(production) == [
        [first, "stack.tasks.sample", "crawl", error],
        [second, "stack.tasks.sample", "notify", error],
    ]
    assert inspect(production, first)["kwargs"] == '{"steps": 2, "pause": 0, "fail": true}'
    assert refused(production, "failed", "--retry", "x").startswith("No failed task has the id x")

    printed = production.manage("failed", "--retry", "all")
    assert [line.split()[1] for line in printed.splitlines()] == [second, first]
    wait_for("both failed again", lambda: len(failed(production)) == 2)


def test_a_killed_task_is_a_failed_one_whose_arguments_are_known(
    production: Stack, nothing_failed: None
) -> None:
    # The worker itself knows its arguments: its child is gone.
    code = (
        "from probe.tasks import hold_on;"
        "print(hold_on.apply_async(kwargs={'minutes': 1}, soft_time_limit=1, time_limit=2).id)"
    )
    task = production.python(code)
    wait_for("it failed", lambda: failed(production))
    assert failed(production) == [
        [task, "probe.tasks.hold_on", "default", "TimeLimitExceeded: TimeLimitExceeded(2,)"]
    ]
    assert inspect(production, task)["kwargs"] == '{"minutes": 1}'


def test_an_unknown_task_is_a_failed_one_and_its_worker_goes_on(
    production: Stack, nothing_failed: None
) -> None:
    started = production.containers()["worker-crawl"].attrs["State"]["StartedAt"]
    code = (
        "from config.celery import app;"
        "print(app.send_task('shop.tasks.gone', (1,), {'n': 2}, queue='crawl').id)"
    )
    task = production.python(code)
    wait_for("it failed", lambda: failed(production))
    error = "UnknownTask: unknown task shop.tasks.gone"
    assert failed(production) == [[task, "shop.tasks.gone", "crawl", error]]
    rows = inspect(production, task)
    assert (rows["state"], rows["args"], rows["kwargs"]) == ("FAILURE", "[1]", '{"n": 2}')
    production.manage("failed", "--retry", task)
    wait_for("it failed again", lambda: failed(production))
    assert failed(production) == [[task, "shop.tasks.gone", "crawl", error]]
    assert production.result(production.send("crawl", steps=1)).startswith("Done by")
    assert production.containers()["worker-crawl"].attrs["State"]["StartedAt"] == started


# Publish a message as it is.
PUBLISH = """
import sys, uuid
from config.celery import app
task = str(uuid.uuid4())
headers = {{"id": task, "task": "stack.tasks.sample", "root_id": task, "retries": 0, "timelimit": [None, None]}}
with app.amqp.producer_pool.acquire() as producer:
    producer.publish(
        {body!r}, content_type={kind!r}, content_encoding="utf-8",
        headers=headers | {more!r}, exchange="crawl", routing_key="crawl",
    )
print(task)
"""
HEADER = "InvalidMessage: The header"


@pytest.mark.parametrize(
    ("body", "kind", "more", "error"),
    [
        ("{", "application/json", {}, "InvalidMessage: Expecting property name"),
        ("5", "application/json", {}, "InvalidMessage: No [args, kwargs, options]"),
        ("[[], {}, {}]", "application/x-pickle", {}, "InvalidMessage: "),
        ("[[], {}, {}]", "application/json", {"eta": "x"}, "InvalidMessage: invalid ETA value"),
        ("[[], {}, {}]", "application/json", {"timelimit": [1]}, f"{HEADER} retries or timelimit"),
        ("[[], {}, {}]", "application/json", {"timelimit": 5}, f"{HEADER} retries or timelimit"),
        ("[[], {}, {}]", "application/json", {"retries": "x"}, f"{HEADER} retries or timelimit"),
        ("[[1, 2, 3, 4], {}, {}]", "application/json", {}, "TypeError: sample() takes from 1 to 4"),
    ],
)
def test_an_unreadable_task_is_a_failed_one_and_its_worker_goes_on(
    production: Stack, nothing_failed: None, body: str, kind: str, more: dict, error: str
) -> None:
    started = production.containers()["worker-crawl"].attrs["State"]["StartedAt"]
    task = production.python(PUBLISH.format(body=body, kind=kind, more=more))
    ((*row, printed),) = wait_for("it failed", lambda: failed(production))
    assert row == [task, "stack.tasks.sample", "crawl"]
    assert printed.startswith(error)
    if "InvalidMessage" in error and "eta" not in more:
        sentence = f"{task} is not sent again: its message could not be read."
        assert refused(production, "failed", "--retry", task) == sentence
        assert inspect(production, task)["body"].endswith(f"{body!r}")
    assert production.result(production.send("crawl", steps=1)).startswith("Done by")
    assert production.containers()["worker-crawl"].attrs["State"]["StartedAt"] == started


@pytest.mark.parametrize("more", [{"id": None}, {"id": [1]}, {"task": ["x"]}])
def test_a_message_without_a_name_is_logged_and_its_worker_goes_on(
    production: Stack, more: dict
) -> None:
    started = production.containers()["worker-crawl"].attrs["State"]["StartedAt"]
    production.python(PUBLISH.format(body="[[], {}, {}]", kind="application/json", more=more))
    assert production.result(production.send("crawl", steps=1)).startswith("Done by")
    assert production.containers()["worker-crawl"].attrs["State"]["StartedAt"] == started
    log = production.compose("logs", "--no-log-prefix", "worker-crawl")
    assert "The header id or task is missing or is not text" in log


def test_inspect_task_shows_the_outcome(production: Stack) -> None:
    production.compose("stop", "worker-crawl")
    task = production.send("crawl", steps=30, pause=0.3)
    assert "it waits in its queue" in production.manage("inspect_task", task)
    production.containers()["worker-crawl"].start()

    def running() -> dict[str, str] | None:
        rows = inspect(production, task)
        return rows if rows.get("state") == "running" else None

    rows = wait_for("it runs", running)
    assert rows["task"] == "stack.tasks.sample"
    assert rows["queue"] == "crawl"
    assert rows["worker"] == f"crawl@{production.slug}"
    assert rows["kwargs"] == '{"steps": 30, "pause": 0.3}'
    assert "'steps': 30" in rows["progress"]
    started = time.strptime(rows["started"], "%Y-%m-%d %H:%M:%S")
    production.result(task)
    rows = inspect(production, task)
    assert rows["state"] == "SUCCESS"
    assert rows["result"] == f"'Done by crawl@{production.slug}.'"
    assert time.strptime(rows["ended"], "%Y-%m-%d %H:%M:%S") > started
    assert "args" not in rows


def test_a_failed_task_is_shown_with_its_error(production: Stack) -> None:
    task = production.send("notify", steps=2, pause=0, fail=True)
    wait_for("it failed", lambda: inspect(production, task)["state"] == "FAILURE")
    rows = inspect(production, task)
    assert rows["error"] == "SampleError: This task was sent to fail."
    assert rows["request"] == task
    assert "Traceback (most recent call last)" in production.manage("inspect_task", task)


def test_every_worker_confirms_a_rate_limit(production: Stack) -> None:
    workers = [f"{name}@{production.slug}" for name in ("crawl", "default", "notify")]
    for rate in ("4/m", "0"):
        printed = production.manage("rate_limit", "probe.tasks.sleep", rate)
        assert [line.split() for line in printed.splitlines()[1:]] == [[w, rate] for w in workers]
        known = production.inspect("registered")
        assert sorted(known) == workers
        for tasks in known.values():
            assert f"probe.tasks.sleep [rate_limit={rate}]" in tasks


def test_a_rate_limit_that_a_worker_missed_is_reported(production: Stack) -> None:
    production.compose("stop", "worker-notify")
    try:
        printed = production.manage("rate_limit", "probe.tasks.sleep", "0")
    finally:
        production.start("worker-notify")
    assert printed.splitlines()[-1].split() == ["notify", "no", "answer"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["no.such.task", "1/s"],
            'There is no task "no.such.task", but notifications.tasks',
        ),
        (["stack.tasks.sample", "soon"], '"soon" is no rate: 10/s, 10/m or 10/h is'),
    ],
)
def test_a_rate_limit_that_makes_no_sense_is_refused(
    production: Stack, arguments: list[str], sentence: str
) -> None:
    assert refused(production, "rate_limit", *arguments).startswith(sentence)
