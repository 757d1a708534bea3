"""What is counted about requests and tasks, and who may see it."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import celery
import pytest
from asgiref.testing import ApplicationCommunicator
from celery import Task, current_app, shared_task
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient
from django.urls import path
from kombu import Connection
from kombu.exceptions import OperationalError
from redis import Redis

from stack import activity, brokers, exposition, metrics
from stack.brokers import redis as redis_broker
from stack.celery.task import AlreadyDone
from stack.health import HealthChecks
from stack.testing import wait_for

NAME = "stack.tests.test_metrics."


class Foreign(celery.Task):
    """A class that is not derived from the stack's."""


def end_as(self: Task, how: str) -> None:
    """End in one way or another."""
    match how:
        case "fail":
            raise ValueError("secret")
        case "retry" if not self.request.retries:
            raise self.retry(countdown=0)
        case "done before":
            raise AlreadyDone
        case "ignore":
            raise celery.exceptions.Ignore
        case "reject":
            raise celery.exceptions.Reject


end: Any = shared_task(bind=True, name=f"{NAME}end")(end_as)
early: Any = shared_task(bind=True, acks_late=False, name=f"{NAME}early")(end_as)
foreign: Any = shared_task(bind=True, base=Foreign, name=f"{NAME}foreign")(end_as)


@pytest.fixture(autouse=True)
def nothing() -> Iterator[None]:
    """Begin with no counts."""
    metrics.counts.push()
    activity.store().flushdb()
    Redis.from_url(current_app.conf.broker_url).delete("metrics")
    exposition.latest = (-exposition.FRESH, b"")
    yield
    metrics.counts.push()


def get(headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Return status and body of /metrics."""

    async def ask() -> tuple[int, str]:
        encoded = [(name.encode(), text.encode()) for name, text in (headers or {}).items()]
        scope: dict[str, Any] = {"type": "http", "path": "/metrics", "headers": encoded}
        nothing: Any = None  # no other application
        client = ApplicationCommunicator(HealthChecks(nothing), scope)
        await client.send_input({"type": "http.request"})
        start = await client.receive_output(timeout=30)
        body = await client.receive_output(timeout=30)
        return start["status"], body["body"].decode()

    exposition.latest = (-exposition.FRESH, b"")
    return asyncio.run(ask())


def rows(*names: str) -> set[str]:
    """Return the lines of /metrics that begin with one of the names."""
    return {line for line in get()[1].splitlines() if line.startswith(names)}


def ends() -> Counter[tuple[str, str]]:
    """Return what was counted of the tasks above: name and state."""
    found = brokers.current().task_counts()
    return Counter(
        {
            (parts[1].removeprefix(NAME), parts[2]): count
            for _, parts, count in exposition.counted("task", metrics.decoded(found))
        }
    )


# Tasks ---------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("task", ["end", "early", "foreign"])
def test_each_end_is_counted_once(worker: None, task: str) -> None:
    ways = ["succeed", "succeed", "fail", "retry", "done before", "ignore", "reject"]
    for how in ways:
        globals()[task].delay(how)
    # A retry succeeds at the second attempt. What is ignored has not ended.
    expected = Counter({(task, "succeeded"): 4, (task, "failed"): 2, (task, "retried"): 1})
    wait_for(lambda: ends() == expected)
    time.sleep(0.5)
    assert ends() == expected
    (count,) = rows('stack_task_seconds_count{queue="default"}')
    assert count.endswith(" 7.0")
    assert "secret" not in get()[1]


@pytest.mark.django_db
def test_a_task_without_code_is_unknown_and_names_no_label(worker: None) -> None:
    current_app.send_task("misspelt", queue="default")
    wait_for(lambda: ends() == {("unknown", "failed"): 1})
    assert "misspelt" not in get()[1]
    metrics.counts.push()
    assert metrics.failing() == {}


@pytest.mark.django_db
def test_failures_in_a_row_end_with_a_success(worker: None) -> None:
    def failing() -> dict[str, int]:
        metrics.counts.push()
        return metrics.failing()

    for _ in range(2):
        end.delay("fail")
    wait_for(lambda: failing() == {f"{NAME}end": 2})
    end.delay("succeed")
    wait_for(lambda: failing() == {})


def test_a_success_and_a_failure_between_two_reports_count_in_their_order() -> None:
    for state in (metrics.FAILED, metrics.SUCCEEDED, metrics.FAILED, metrics.FAILED):
        metrics.counts.add(metrics.Counts.task, "a", state, None)
    metrics.counts.push()
    assert metrics.failing() == {"a": 2}


def test_a_broker_that_cannot_count_leaves_it_to_the_cache(monkeypatch) -> None:
    class Message:
        channel = object()  # of RabbitMQ, say
        delivery_tag = "1"

    current_app.amqp.queues.select(["default"])
    metrics.count_task(Message(), "default", "a", metrics.SUCCEEDED, 0.05, acknowledged=False)
    metrics.count_task(Message(), "made up", "a", metrics.FAILED, None, acknowledged=False)
    metrics.counts.push()
    monkeypatch.setattr(redis_broker, "OWN_TRANSPORT", False)
    found = rows("stack_tasks_total", "stack_task_seconds")
    assert 'stack_tasks_total{queue="default",state="succeeded",task="a"} 1.0' in found
    assert 'stack_tasks_total{queue="default",state="failed",task="a"} 1.0' in found
    assert 'stack_task_seconds_bucket{le="0.01",queue="default"} 0.0' in found
    assert 'stack_task_seconds_bucket{le="0.1",queue="default"} 1.0' in found
    assert 'stack_task_seconds_sum{queue="default"} 0.05' in found


@pytest.mark.django_db(transaction=True)
def test_a_refused_task_is_counted_once(monkeypatch) -> None:
    monkeypatch.setattr(redis_broker, "checked", time.monotonic() + 60)
    monkeypatch.setattr(redis_broker, "refusal", "Redis is full, says this test.")
    for send in (end.delay, end.delay_on_commit):
        with pytest.raises(OperationalError):
            send("succeed")
    # One that is found out when it is sent, here at once: there is no transaction.
    monkeypatch.setattr(redis_broker, "refusal", "")
    nowhere = Connection("redis://127.0.0.1:1", transport_options={"max_retries": 0})
    with pytest.raises(OperationalError):
        end.apply_async_on_commit(("succeed",), connection=nowhere, retry=False)
    metrics.counts.push()
    assert rows("stack_tasks_refused_total") == {"stack_tasks_refused_total 3.0"}
    assert metrics.lately()["refused"] == 3


# Requests ------------------------------------------------------------------------------------------


def page(request: HttpRequest, word: str) -> HttpResponse:
    """Answer."""
    return HttpResponse("a page")


async def broken(request: HttpRequest) -> HttpResponse:
    """Fail, on the event loop."""
    raise ValueError("secret")


urlpatterns = [path("page/<word>", page, name="a-page"), path("broken", broken)]


def test_requests_are_counted_by_view_and_status(settings) -> None:
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = ["stack.middleware.measure", "stack.middleware.one_thread"]

    async def ask() -> None:
        client = AsyncClient(raise_request_exception=False)
        for address in ("/page/secret", "/page/other", "/broken", "/secret"):
            await client.get(address)

    asyncio.run(ask())
    metrics.counts.push()
    name = "stack_request_seconds_count{status="
    assert rows(name) == {
        name + '"200",view="a-page"} 2.0',
        name + '"500",view="' + NAME + 'broken"} 1.0',
        name + '"404",view=""} 1.0',
    }
    assert "secret" not in get()[1]
    assert metrics.lately() == {"errors": 1, "others": 3}


def test_without_a_cache_counts_are_kept_for_later(settings, monkeypatch) -> None:
    monkeypatch.setattr(activity, "store", lambda: Redis.from_url("redis://127.0.0.1:1"))
    metrics.count_request("view", 200, 0.3)
    metrics.counts.push()
    status, text = get()
    assert status == 200
    assert 'stack_up{service="cache"} 0.0' in text
    assert 'stack_up{service="broker"} 1.0' in text
    assert "stack_request_seconds" not in text
    monkeypatch.undo()
    metrics.count_request("view", 200, 0.3)
    metrics.counts.push()
    metrics.counts.push()
    counts = rows('stack_request_seconds_count{status="200",view="view"}')
    assert [line.rpartition(" ")[2] for line in counts] == ["2.0"]


# The page ------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_all_services_are_up() -> None:
    up = "stack_up{service="
    assert rows(up) == {up + f'"{name}"' + "} 1.0" for name in ("broker", "cache", "db")}
    assert {row.split()[0] for row in rows("stack_database", "stack_broker")} == {
        "stack_database_bytes",
        "stack_database_connections",
        "stack_broker_full",
        "stack_broker_memory_bytes",
        "stack_broker_memory_max_bytes",
    }


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        ("", {}, 200),
        ("right", {}, 200),
        ("", {"x-forwarded-for": "203.0.113.1"}, 404),
        ("", {"x-forwarded-for": ""}, 404),
        ("", {"x-forwarded-for": "203.0.113.1", "authorization": "Bearer "}, 404),
        ("right", {"x-forwarded-for": "203.0.113.1"}, 403),
        ("right", {"x-forwarded-for": "203.0.113.1", "authorization": "Bearer wrong"}, 403),
        ("right", {"x-forwarded-for": "203.0.113.1", "authorization": "right"}, 403),
        ("right", {"x-forwarded-for": "203.0.113.1", "authorization": "Bearer right"}, 200),
    ],
)
def test_who_comes_by_the_proxy_needs_the_token(
    settings, token: str, headers: dict[str, str], status: int
) -> None:
    settings.METRICS_TOKEN = token
    found, text = get(headers)
    assert found == status
    assert ("stack_up" in text) == (status == 200)


def test_what_hangs_is_asked_once_and_holds_up_nothing_else() -> None:
    asked = []

    def hang() -> list[Any]:
        asked.append(True)
        time.sleep(1)
        return []

    source = exposition.Source(hang, timeout=0.2)

    async def ask() -> list[Any]:
        return [*await asyncio.gather(source.ask(), source.ask())]

    assert asyncio.run(ask()) == asyncio.run(ask()) == [None, None]
    assert len(asked) == 1
    wait_for(lambda: source.running and source.running.done())
    source.timeout = 10
    assert asyncio.run(source.ask()) == []
