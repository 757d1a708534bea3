import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import current_app
from django.test import Client

from stack import logs
from stack.tasks import sample
from stack.testing import wait_for


@pytest.fixture
def request_id() -> Iterator[str]:
    """The name of a request that is under way."""
    token = logs.fields.set({"request_id": "abc"})
    yield "abc"
    logs.fields.reset(token)


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict]]]:
    """What is logged from now on, as production does it."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logs.Json())
    root = logging.getLogger()
    root.addHandler(handler)
    yield lambda: [json.loads(line) for line in handler.stream.getvalue().splitlines()]
    root.removeHandler(handler)


def test_a_line_is_one_object_whatever_it_says(lines, request_id: str) -> None:
    try:
        raise ValueError("several\nlines")
    except ValueError:
        logging.getLogger("shop").exception('it said "no"\nand left', extra={"order": 3})
    (line,) = lines()
    assert line.pop("time").endswith("+00:00")
    assert line.pop("exc_info").endswith("ValueError: several\nlines")
    assert line == {
        "level": "ERROR",
        "logger": "shop",
        "message": 'it said "no"\nand left',
        "order": 3,
        "request_id": request_id,
    }


def test_a_line_to_be_read_is_one_line_too(request_id: str) -> None:
    record = logging.makeLogRecord({"name": "shop", "levelname": "INFO", "msg": "a\r\né\x1b[1m"})
    assert logs.Text().format(record).endswith(r" INFO shop a\r\né\x1b[1m [abc]")


def test_a_request_has_the_name_that_the_proxy_gave_it(client: Client, lines) -> None:
    client.get("/nothing/here", headers={"X-Request-ID": "abc"})
    client.get("/nothing")
    assert [(line["message"], line.get("request_id")) for line in lines()] == [
        ("Not Found: /nothing/here", "abc"),
        ("Not Found: /nothing", None),
    ]


def test_a_task_is_sent_with_the_name_of_its_request_or_its_own(request_id: str) -> None:
    current_app.control.purge()
    sample.apply_async(queue="default")
    token = logs.fields.set({})
    own = sample.apply_async(queue="default").id
    logs.fields.reset(token)
    with current_app.connection_for_read() as connection:
        queue = current_app.amqp.queues["default"](connection.default_channel)
        sent: list[Any] = [queue.get(no_ack=True) for _ in range(2)]
    names = [message.headers["request_id"] for message in sent]
    assert names == [request_id, own]


@pytest.mark.django_db
def test_the_line_at_the_end_of_a_task_tells_all(worker, lines, request_id: str) -> None:
    done = sample.apply_async(kwargs={"steps": 1, "pause": 0}, queue="default")
    failed = sample.apply_async(kwargs={"steps": 2, "pause": 0, "fail": True}, queue="default")

    def ended() -> dict[str, dict]:
        return {line["task_id"]: line for line in lines() if line["logger"] == "celery.app.trace"}

    wait_for(lambda: ended().keys() >= {done.id, failed.id})
    found = ended()
    for task, outcome in ((done, "succeeded"), (failed, "failed")):
        line = found[task.id]
        assert line["outcome"] == outcome
        assert line["request_id"] == request_id
        assert (line["task"], line["queue"]) == ("stack.tasks.sample", "default")
        assert 0 <= line["duration"] < 20


def test_a_task_that_is_called_keeps_the_name_of_the_request(lines, request_id: str) -> None:
    logger = logging.getLogger("shop")

    @current_app.task(name="tests.inner")
    def inner() -> None:
        logger.warning("inside")

    inner.apply()
    logger.warning("after")
    told = [(line["message"], line["request_id"], line.get("task")) for line in lines()]
    assert ("inside", request_id, "tests.inner") in told
    assert told[-1] == ("after", request_id, None)


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        ({"runtime": 1.0}, "succeeded"),
        ({"exc": "Retry"}, "retry"),
        ({"description": "raised unexpected"}, "failed"),
        ({"description": "INTERNAL ERROR"}, "failed"),
        ({"description": "rejected"}, "rejected"),
        ({"description": "ignored"}, "ignored"),
        ({"description": "Task already completed successfully."}, "ignored"),
    ],
)
def test_what_celery_tells_is_an_outcome(data: dict, outcome: str) -> None:
    assert logs.outcome(data) == outcome
