import asyncio
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from celery import current_app
from django.conf import settings

from stack import activity, brokers, metrics, problems, queues
from stack.activity import Workers
from stack.health import MAX_BODY, HealthChecks
from stack.problems import Aside, Problem, Recent, find, parse
from stack.queues import Waiting
from stack.tasks import sample


def workers(up: int = 1, stopping: int = 0, done: int = 0) -> Workers:
    """Return what is reported of a queue."""
    return Workers(up, stopping, 0, [0] * 59 + [done], [0] * 60)


FINE: dict[str, Any] = {
    "broker": {"default": Waiting(5, 3599)},
    "full": False,
    "aside": Aside({}, 0, {}),
    "cache": ({"default": workers()}, True),
    "db": None,
    "reports": [],
    "recent": Recent({"shop.tasks.pay": 4}, 0, (1000, 50)),
    "alerts": [],
}
WRONG: list[tuple[str, str, set[str], dict[str, Any]]] = [
    ("broker-down", "", {"broker", "full", "aside"}, {}),
    ("cache-down", "", {"cache", "reports", "recent"}, {}),
    ("database-down", "", {"db"}, {}),
    ("broker-full", "", set(), {"full": True}),
    ("no-worker", "default", set(), {"cache": ({"default": workers(up=0)}, True)}),
    ("beat-silent", "", set(), {"cache": ({"default": workers()}, False)}),
    ("queue-stuck", "default", set(), {"broker": {"default": Waiting(5, 3601)}}),
    (
        *("queue-stuck", "default", set()),
        {"broker": {"default": Waiting(5, None)}, "aside": Aside({}, 0, {"default": 3601})},
    ),
    ("tasks-stranded", "old", set(), {"aside": Aside({"old": 2}, 0, {})}),
    ("dead-letters", "", set(), {"aside": Aside({}, 1, {})}),
    ("tasks-fail", "shop.tasks.pay", set(), {"recent": Recent({"shop.tasks.pay": 5}, 0, (0, 0))}),
    ("tasks-refused", "", set(), {"recent": Recent({}, 1, (0, 0))}),
    ("requests-fail", "", set(), {"recent": Recent({}, 0, (199, 10))}),
]


def test_nothing_is_wrong_within_the_limits() -> None:
    assert find(set(), FINE) == []
    few = Recent({}, 0, (9, 9))
    stopping = {"default": workers(up=0, stopping=1)}
    assert find(set(), FINE | {"recent": few, "cache": (stopping, True)}) == []
    assert find(set(), {}) == [], "nothing is known yet"


@pytest.mark.parametrize(("problem", "subject", "down", "answers"), WRONG)
def test_each_problem_has_one_sentence(
    problem: str, subject: str, down: set[str], answers: dict[str, Any]
) -> None:
    known = {name: answer for name, answer in (FINE | answers).items() if name not in down}
    (found,) = find(down, known)
    assert (found.problem, found.subject) == (problem, subject)
    assert subject in found.sentence
    assert found.sentence.endswith(".")


def test_each_problem_that_the_code_names_is_tried_here() -> None:
    code = Path(problems.__file__).read_text(encoding="utf-8")
    named = set(re.findall(r'Problem\(\s*"([\w-]+)"', code))
    assert named == {problem for problem, *_ in WRONG}


def test_each_queue_may_have_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_DEFAULT_AGE_LIMIT", "60")
    (found,) = find(set(), FINE)
    assert found.sentence.startswith(
        "The queue default is behind: its oldest task has waited for 60 min"
    )
    assert problems.age_limit("another-one") == 3600


def test_a_rule_that_fails_hides_no_other() -> None:
    wrong: dict[str, Any] = {"broker": "nonsense", "full": True, "cache": ({}, False)}
    found = find(set(), FINE | wrong)
    assert [one.problem for one in found] == ["broker-full", "beat-silent"]


@pytest.fixture
def running(django_db_setup: None) -> None:
    """A worker for each queue and beat, as they report themselves."""
    metrics.counts.push()  # what tests before this one have counted, and not yet reported
    store = activity.store()
    store.flushdb()
    current_app.control.purge()
    about = json.dumps({"at": time.time() + 60, "running": 0, "stopping": False})
    for queue in settings.QUEUES:
        store.hset(f"activity:workers:{queue}", "host", about)
    store.set("activity:beat", "host", 60)


@pytest.mark.django_db(transaction=True)
def test_each_part_is_asked_for_real(running: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems.current() == []
    store = activity.store()
    store.hdel("activity:workers:default", "host")
    store.delete("activity:beat")
    monkeypatch.setattr(brokers.current(), "dead_letters", lambda connection: 1)
    monkeypatch.setattr("stack.celery.signals.time", SimpleNamespace(time=lambda: 1.0))
    try:
        sample.apply_async()
        found = {(one.problem, one.subject) for one in problems.current()}
    finally:
        current_app.control.purge()
    assert found == {
        *(("no-worker", "default"), ("beat-silent", ""), ("dead-letters", "")),
        ("queue-stuck", "default"),
    }
    store.flushdb()


@pytest.mark.django_db(transaction=True)
def test_what_does_not_answer_hides_nothing_else(
    running: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems, "check_database", lambda: time.sleep(5))
    monkeypatch.setattr(problems, "TIMEOUT", 1)
    monkeypatch.setattr(brokers.current(), "is_full", lambda: True)
    assert [one.problem for one in problems.current()] == ["broker-full", "database-down"]


def test_where_the_broker_knows_no_ages_a_queue_that_does_not_move_is_stuck(
    running: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.time()
    with queues.connect() as connection:
        assert problems.still(connection) == {}
        sample.apply_async()
        assert problems.still(connection)["default"] == pytest.approx(0, abs=5)
        monkeypatch.setattr(problems.time, "time", lambda: clock + 4000)
        activity.store().hset(
            "activity:workers:default",
            "host",
            json.dumps({"at": clock + 5000, "running": 1, "stopping": False}),
        )
        assert problems.still(connection)["default"] == pytest.approx(4000, abs=60)
        activity.store().set(activity.counter("default", clock + 4000), 1)
        assert problems.still(connection) == {}, "a task has ended"
    current_app.control.purge()
    activity.store().flushdb()


# Reports of VMs -----------------------------------------------------------------------------------

REPORT: dict[str, Any] = {
    "vm": "vm-1",
    "problems": [{"problem": "disk-full", "subject": "/", "sentence": "The disk is 90 % full."}],
    "backup": 1000.0,
    "certificate": None,
    "disk": 0.9,
    "memory": 0.5,
    "load": 1.5,
}


def send(
    body: bytes, *headers: tuple[bytes, bytes], method: str = "POST", parts: int = 1
) -> tuple[int, bytes]:
    """POST to /vm; return status and body of the answer. 418 is Django's."""

    async def django(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> tuple[int, bytes]:
        scope: dict[str, Any] = {"type": "http", "method": method, "path": "/vm"}
        client = ApplicationCommunicator(HealthChecks(django), scope | {"headers": headers})
        for part in range(parts):
            await client.send_input(
                {"type": "http.request", "body": body, "more_body": part < parts - 1}
            )
        start = await client.receive_output(timeout=30)
        return start["status"], (await client.receive_output(timeout=30))["body"]

    return asyncio.run(ask())


@pytest.mark.django_db(transaction=True)
def test_a_report_is_kept_and_answered_with_what_web_sees(running: None) -> None:
    activity.store().delete("activity:beat")
    status, body = send(json.dumps(REPORT).encode())
    assert status == 200
    (silent,) = json.loads(body)["problems"]
    assert silent["problem"] == "beat-silent"
    (kept,) = problems.reports()
    assert {name: value for name, value in kept.items() if name != "at"} == REPORT
    disk = Problem("disk-full", "/", "vm-1: The disk is 90 % full.")
    assert disk in problems.current()
    activity.store().hset("problems:vms", "vm-1", json.dumps(kept | {"at": time.time() - 601}))
    assert problems.reports() == []
    activity.store().flushdb()


def test_through_the_proxy_the_page_is_the_projects() -> None:
    assert send(b"{}", (b"x-forwarded-for", b"203.0.113.7"))[0] == 418
    assert send(b"", method="GET")[0] == 405


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}", b"null", b"\xff", b"[" * 60_000),
        *(json.dumps(REPORT | {"vm": vm}).encode() for vm in (None, 1, "", "a b", "x\u2028")),
        json.dumps(REPORT | {"problems": 1}).encode(),
        json.dumps(REPORT | {"problems": [{}]}).encode(),
        json.dumps(
            REPORT | {"problems": [{"problem": "<a>", "subject": "", "sentence": ""}]}
        ).encode(),
        json.dumps(REPORT).replace("0.9", "1" + "0" * 400).encode(),
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_what_is_no_report_is_refused(body: bytes) -> None:
    assert send(body)[0] == 400


def test_a_large_report_is_refused_however_it_arrives() -> None:
    assert send(b" " * (MAX_BODY + 1))[0] == 413
    assert send(b" " * (MAX_BODY // 2), parts=3)[0] == 413


def test_what_is_kept_is_bounded(running: None) -> None:
    long = {"problem": "p", "subject": "s" * 1000, "sentence": "\ud800\n" + "t" * 1000}
    report = parse(
        json.dumps(REPORT | {"problems": [long] * 1000, "disk": "full", "load": True}).encode()
    )
    assert len(report["problems"]) == problems.PROBLEMS
    assert report["problems"][0]["subject"] == "s" * problems.TEXT
    assert report["problems"][0]["sentence"] == "t" * (problems.TEXT - 2)
    assert report["disk"] is None
    for number in range(problems.VMS + 5):
        problems.store(report | {"vm": f"vm-{number}"})
    assert len(problems.reports()) == activity.store().hlen("problems:vms") == problems.VMS
    assert problems.reports()[0]["vm"] == f"vm-{problems.VMS + 4}"
    activity.store().flushdb()
