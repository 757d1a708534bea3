"""
Measure what /metrics adds to a request and to a task, from inside a container of the stack.

python -m bench.counting COUNT; prints JSON with microseconds.
"""
# ruff: noqa: E402 - Django has to be set up first

import asyncio
import json
import sys
import time
import uuid
from types import SimpleNamespace

import django
from redis import Connection, Redis

django.setup()

from celery import current_app
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from stack import activity, metrics
from stack.brokers import redis_transport
from stack.celery.request import Request
from stack.middleware import measure

from bench.tasks import nothing


def each(count: int, function) -> float:
    """Call `function` so often; return the microseconds of CPU of a call, without those of the loop."""
    times = []
    for call in (function, lambda: None):
        started = time.process_time()
        for _ in range(count):
            call()
        times.append(time.process_time() - started)
    return (times[0] - times[1]) / count * 1e6


def page(count: int) -> float:
    """Return what a page costs all in all, from the server's call of the application to the last byte."""
    headers = [(b"host", b"localhost"), (b"x-forwarded-proto", b"https")]
    scope = {"type": "http", "method": "GET", "path": "/bench/sync", "headers": headers}
    scope |= {"query_string": b"", "http_version": "1.1", "asgi": {"version": "3.0"}}
    application, statuses = get_asgi_application(), []

    async def send(event) -> None:
        statuses.append(event.get("status", 200))

    async def ask() -> float:
        for number in (count // 10, count):  # the first ones warm up
            started = time.process_time()
            for _ in range(number):
                got = iter([{"type": "http.request", "body": b"", "more_body": False}])

                async def receive(got=got):
                    for event in got:
                        return event
                    await asyncio.sleep(60)

                await application(dict(scope), receive, send)
        return (time.process_time() - started) / count * 1e6

    found = asyncio.run(ask())
    assert set(statuses) == {200}, set(statuses)
    return found


def counted_page(count: int) -> float:
    """Return what is added to it, with what the thread does that adds it to the cache."""
    response, request = HttpResponse(), SimpleNamespace(resolver_match=None)
    request.resolver_match = SimpleNamespace(view_name="a-view")
    answer = lambda request: response  # noqa: E731
    counting = measure(answer)
    return each(count, lambda: counting(request)) - each(count, lambda: answer(request)) + pushed()


def pushed() -> float:
    """Return the microseconds that the thread needs for each event that waits."""
    events = len(metrics.counts.events)
    started = time.process_time()
    metrics.counts.push()
    return (time.process_time() - started) / max(1, events) * 1e6


def counted_task(count: int) -> float:
    """Return what is added to the end of a task in the worker's main process."""
    current_app.amqp.queues.select(["default"])
    book = redis_transport.Book()

    def count_with(tag, outcome, acknowledged) -> None:
        book.counted["tag"] = outcome

    message = SimpleNamespace(
        channel=SimpleNamespace(count_with=count_with), delivery_tag="tag", payload=([], {}, {})
    )

    class Own(Request):
        """A request that has just begun."""

        task, acknowledged = nothing, False

        def __init__(self) -> None:
            self.name = nothing.name

    Own.message, Own.delivery_info = message, {"routing_key": "default"}
    made = each(count, Own)

    def end() -> None:
        request = Own()
        request.take((0, "None", 0.001))
        request.count()
        request.count_early()

    return each(count, end) - made + pushed() + packed(count)


def packed(count: int) -> float:
    """Return what the names and counts cost that go to Redis with the acknowledgement."""
    counted = metrics.outcome("default", nothing.name, "succeeded", 0.001)
    connection, times = Connection(), []
    for outcome in (counted, redis_transport.UNCOUNTED):
        words = ["EVALSHA", "script", 1, "key", "owner", 0, 0, 1, "tag"]
        times.append(each(count, lambda o=outcome, w=words: connection.pack_command(*w, *o)))
    return times[0] - times[1]


def settled(count: int) -> tuple[float, float]:
    """Return what Redis needs to acknowledge a message, without and with counting it."""
    client = Redis.from_url(activity.settings.CACHE_URL).client()
    script = client.register_script(redis_transport.SETTLE)
    names = ["bench:held", "bench:index", "bench:owner", "bench:counts"]
    counted = metrics.outcome("default", nothing.name, "succeeded", 0.001)
    times = {redis_transport.UNCOUNTED: [], counted: []}
    for turn in range(20):
        outcome = [*times][turn % 2]
        client.config_resetstat()
        for _ in range(count // 20):
            tag = str(uuid.uuid4())
            client.zadd(names[1], {tag: time.time()})
            script(names, ["owner", 0, 0, 1, tag, *outcome])
        times[outcome].append(client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"])
    client.delete(*names)
    without, with_counts = map(min, times.values())  # others use the machine, too
    return without, with_counts


if __name__ == "__main__":
    number = int(sys.argv[1])
    without, with_counts = settled(number)
    found = {
        "page": page(number // 10),
        "counted_page": counted_page(number),
        "counted_task": counted_task(number),
        "acknowledged": without,
        "counted_in_redis": with_counts - without,
    }
    print(json.dumps(found))
