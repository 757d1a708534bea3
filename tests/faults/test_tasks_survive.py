"""A task that was accepted is done, whatever dies. The ledger in PostgreSQL is the judge."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.runbook import follow, forget_what_was_counted, problems
from tests.stack.stack import Stack, figures, wait_for

from . import faults
from .helpers import (
    SECONDS,
    TIME_LIMIT,
    WORKER,
    Ledger,
    judge_after,
    ledger_stack,
    main_process,
    wait_until_healthy,
)
from .metrics import count_tasks, kill_and_wait, scrape


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The stack with the app `ledger`, on one broker after the other."""
    stack = ledger_stack(tmp_path_factory.mktemp(request.param), broker=request.param)
    try:
        stack.up("--build")
        yield stack
    finally:
        stack.remove()


@pytest.fixture
def ledger(stack: Stack) -> Ledger:
    """The ledger of the stack."""
    return Ledger(stack)


# A step that fails, then two in parallel, then one more.
CHAIN = """
from celery import chain, group
from ledger.models import Entry
from ledger.tasks import fail_once, work
keys = [f"chain-{number}" for number in range(5)]
Entry.objects.bulk_create(Entry(key=key) for key in keys)
first, failing, *both, last = keys
both = group(work.si(key, 0) for key in both)
steps = chain(work.si(first, 0), fail_once.si(failing), both, work.si(last, 0))
steps.apply_async(queue="crawl")
"""
# How many messages the queue has, with those that Redis counts as taken.
HELD = """
from config.celery import app
with app.connection_for_read() as connection:
    channel = connection.default_channel
    waiting = app.amqp.queues["crawl"](channel).queue_declare().message_count
    print(waiting + (channel.client.hlen("unacked") if hasattr(channel, "client") else 0))
"""


# Moves one task at a time, and dies at some moment.
MOVE = """
import os, random, threading
from stack import brokers, queues
brokers.current().STEP = 1
with queues.connect() as connection:
    for moved in queues.move(connection, "crawl", "default"):
        if moved == 1:
            threading.Timer(random.uniform(0.05, 0.3), os.kill, (os.getpid(), 9)).start()
print("all are moved")
"""


def errors(logs: str) -> str:
    """Pick the lines that name an error."""
    return "\n".join(sorted({line[-200:] for line in logs.splitlines() if "Error" in line}))


def test_a_worker_that_dies_loses_no_task(ledger: Ledger) -> None:
    ledger.send("eat", "eaten", 1, 1000)
    verdict = judge_after(
        ledger,
        "died",
        100,
        faults.run_out_of_memory,
        faults.kill_pool_child,
        faults.kill_main_process,
    )
    assert verdict.lost == 0
    assert ledger.drain("eaten").lost == 0


def test_a_worker_that_is_stopped_ends_its_tasks_and_doubles_none(ledger: Ledger) -> None:
    ledger.send("work", "long", 1, TIME_LIMIT * 0.8)
    verdict = judge_after(
        ledger, "stopped", 100, faults.stop_and_start, faults.restart, faults.recreate
    )
    assert (verdict.lost, verdict.doubled) == (0, 0)
    verdict = ledger.drain("long")
    assert (verdict.lost, verdict.doubled) == (0, 0)


@pytest.mark.parametrize("stack", ["redis"], indirect=True)
def test_kombus_own_transport_takes_over_and_hands_back(stack: Stack, ledger: Ledger) -> None:
    node = f"name=crawl@{stack.slug}/"  # only the stack's transport names its connections

    def change(transport: str) -> None:
        stack.set(REDIS_TRANSPORT=transport)
        stack.compose("up", "--detach", "--no-deps", "--wait", WORKER)
        clients = stack.compose("exec", "--no-TTY", "broker", "redis-cli", "client", "list")
        assert (node in clients) == (transport == "stack")

    verdict = judge_after(
        ledger, "switched", 60, lambda _: change("kombu"), lambda _: change("stack")
    )
    assert (verdict.lost, verdict.doubled) == (0, 0)


def test_a_worker_that_is_stopped_acknowledges_what_its_children_began_just_now(
    stack: Stack, ledger: Ledger
) -> None:
    def taken() -> int:
        return len(stack.inspect("reserved")[f"crawl@{stack.slug}"])

    with faults.stopped_children(stack) as resume, ThreadPoolExecutor(1) as thread:
        ledger.send("work", "begun", 2, 0)
        wait_for("both are with a child", lambda: taken() == 2)
        stop = thread.submit(stack.compose, "stop", WORKER)
        wait_for("it stops", lambda: "Warm shutdown" in stack.compose("logs", "--tail=1", WORKER))
        time.sleep(3)  # until its event loop has ended, at the next of its timers
        resume()
        stop.result()
    assert ledger.done("begun") == 2
    assert stack.python(HELD) == "0"
    stack.compose("up", "--detach", WORKER)
    wait_until_healthy(stack)


@pytest.mark.parametrize("stack", ["redis"], indirect=True)
def test_a_task_runs_once_whose_worker_was_killed_before_it_heard_of_its_end(
    stack: Stack, ledger: Ledger
) -> None:
    def running() -> int:
        return len(stack.inspect("active")[f"crawl@{stack.slug}"])

    tasks = ledger.send("work", "ended", 2, 3)
    wait_for("both run", lambda: running() == 2)
    with faults.stopped_main_process(stack) as pid:
        wait_for("their children acknowledged them", lambda: stack.python(HELD) == "0")
        faults.kill(pid)
    wait_until_healthy(stack)
    code = f"from config.celery import app; print([app.AsyncResult(id).state for id in {tasks}])"
    assert stack.python(code) == str(2 * ["SUCCESS"])
    assert ledger.judge("ended").doubled == 0
    assert ledger.done("ended") == 2


def test_a_stopped_worker_holds_its_tasks_to_their_time_limits(
    stack: Stack, ledger: Ledger
) -> None:
    stops = [faults.stop_and_start, faults.restart, faults.recreate]
    killed = []
    for number, stop in enumerate(stops):
        killed.append(ledger.send("limited", f"limited{number}", 5)[1])
        wait_for("both run", lambda n=number: ledger.started(f"limited{n}") >= 2)
        stop(stack)
    wait_until_healthy(stack)
    # Whatever was not acknowledged is back, because the next worker has the same name.
    wait_for("nothing is held", lambda: stack.python(HELD) == "0")
    for number, task in enumerate(killed):
        rows = ledger.ask(
            "string_agg(started || ':' || done, ' ' ORDER BY key)", f"limited{number}"
        )
        # Each was begun once; the one that does not end fails. A worker that stops may raise the soft
        # limit once more, so that the first one's last line is not always reached.
        assert rows in (["1:1 1:0 1:1 1:1 1:1"], ["1:0 1:0 1:1 1:1 1:1"])
        code = f"from config.celery import app; print(repr(app.AsyncResult({task!r}).result))"
        assert "TimeLimitExceeded(" in stack.python(code)


def test_the_rest_of_a_chain_runs_when_its_failed_step_is_sent_again(
    stack: Stack, ledger: Ledger
) -> None:
    def done() -> str:
        return ledger.ask("string_agg(done::text, '' ORDER BY key)", "chain")[0]

    def listed(word: str) -> list[list[str]]:
        return [row.split() for row in stack.manage("failed").splitlines() if word in row]

    stack.python(CHAIN)
    ((_, _, step, *_),) = wait_for("a step failed", lambda: listed("fail_once"))
    assert [row[:2] for row in listed(f"waits for {step}")] == [["not", "run"]]  # the chord
    time.sleep(1)  # for what would run now, wrongly
    assert done() == "10000"
    stack.manage("failed", "--retry", step)
    wait_for("all are done", lambda: done() == "11111")
    assert not listed(step)


def test_a_killed_move_of_a_queue_loses_and_doubles_no_task(stack: Stack, ledger: Ledger) -> None:
    stack.compose("stop", WORKER)
    try:
        ledger.send("work", "moved", 1000, 0)
        for _ in range(2):
            printed = stack.manage("shell", "--no-imports", "--command", MOVE, check=False)
            assert "all are moved" not in printed
        moved = stack.manage("move_queue", "crawl", "default")
        (count,) = re.findall(r"Moved (\d+) tasks from crawl to default", moved)
        assert 0 < int(count) < 1000
        verdict = ledger.drain("moved")
    finally:
        stack.start(WORKER)
    assert (verdict.accepted, verdict.lost, verdict.doubled) == (1000, 0, 0)


@pytest.mark.parametrize("fault", [faults.restart_broker, faults.kill_broker])
def test_a_broker_that_restarts_or_dies_loses_no_task(
    ledger: Ledger, fault: Callable[[Stack], None]
) -> None:
    # A fault comes soon after two tasks were done, when the worker has the next two for sure. Redis
    # may lose what is on its way to the worker: benchmarks/faults.py kills at any moment, and counts.
    verdict = judge_after(ledger, fault.__name__, 16, fault, seconds=2)
    assert verdict.lost == 0


def test_a_broker_that_is_paused_for_a_minute_loses_no_task_and_keeps_no_request_waiting(
    stack: Stack, ledger: Ledger
) -> None:
    """Django answers all requests, and nginx, which waits for 60 seconds, none."""
    answers: list[requests.Response] = []

    def order(number: int) -> requests.Response:
        key = f"ordered-{time.time_ns()}-{number}"
        return requests.post(f"{stack.url}/ledger/order/{key}", timeout=180)

    with ThreadPoolExecutor(12) as clients:  # more than a web has connections to the broker

        def pause(stack: Stack) -> None:
            assert {answer.status_code for answer in clients.map(order, range(12))} == {202}
            faults.pause_broker(stack, lambda: answers.extend(clients.map(order, range(12))))

        assert judge_after(ledger, "paused", 150, pause).lost == 0
    assert {answer.headers["Content-Type"] for answer in answers} == {"application/json"}
    # 500 when the order is saved, 503 when that it is silent was known before.
    assert {answer.status_code for answer in answers} <= {500, 503}


def test_a_cut_network_loses_no_task(ledger: Ledger) -> None:
    assert judge_after(ledger, "cut", 80, faults.cut_network).lost == 0


def test_a_database_that_restarts_loses_no_task(ledger: Ledger) -> None:
    assert judge_after(ledger, "database", 80, faults.restart_database).lost == 0


def test_a_task_that_kills_its_process_is_stopped_and_fails_visibly(
    stack: Stack, ledger: Ledger
) -> None:
    (task,) = ledger.send("poison", "poison", 1)
    ledger.send("work", "beside", 20, SECONDS)
    code = "from config.celery import app; result = app.AsyncResult({!r}); print(result.state, result.result)"
    wait_for("it failed", lambda: stack.python(code.format(task)).startswith("FAILURE"))
    assert "was started 5 times and never ended" in stack.python(code.format(task))
    assert f"poison[{task}] was started 5 times and never ended" in stack.compose("logs", WORKER)
    assert ledger.ask("started, done", "poison") == ["5", "0"]
    assert ledger.drain("beside").lost == 0
    wait_until_healthy(stack)
    assert ledger.ask("started, done", "poison") == ["5", "0"], "it came back"


def test_a_long_delay_is_kept_once_and_not_too_early(ledger: Ledger) -> None:
    delay = 3 * TIME_LIMIT
    ledger.send("work", "countdown", 1, 0, countdown=delay)
    ledger.send("work_of_another_class", "class", 1, countdown=delay)
    ledger.send("retry_late", "retry", 1, delay)
    for key in ("countdown", "class", "retry"):
        verdict = ledger.drain(key)
        assert (verdict.lost, verdict.doubled) == (0, 0)
        assert verdict.longest > delay - 1
    assert ledger.ask("started", "retry") == ["2"]


def test_a_full_broker_refuses_orders_and_lets_workers_go_on(stack: Stack, ledger: Ledger) -> None:
    def order() -> requests.Response:
        return requests.post(f"{stack.url}/ledger/order/full-{time.time_ns()}", timeout=60)

    def since() -> dict[str, str]:
        found = stack.containers()
        return {name: found[name].attrs["State"]["StartedAt"] for name in (WORKER, "beat", "web-a")}

    ledger.send("work", "beside-full", 20, 1)
    ledger.wait_for_progress("beside-full")
    before = since()
    with faults.full_broker(stack):
        # The broker itself takes a moment to see it.
        wait_for("the first refusal", lambda: order().status_code != 202)
        refused = order()
        assert refused.json()["error"].startswith("The task queue is unavailable."), refused.text
        # A web hears that RabbitMQ is full with the first task that it sends, after the commit.
        assert refused.status_code == (500 if "The data was saved" in refused.text else 503)
        ready = stack.get("/readyz")
        assert (ready.status_code, ready.json()["broker"]) == (503, "full")
        assert ("broker-full", "") in problems(stack)
        verdict = ledger.drain("beside-full")
        assert (verdict.accepted, verdict.lost, verdict.doubled) == (20, 0, 0)
    wait_for("orders are taken", lambda: order().status_code == 202)
    assert ledger.drain("full").lost == 0
    follow(stack, "broker-full")
    # It is named for some minutes more.
    wait_for("it is named", lambda: ("tasks-refused", "") in problems(stack))
    follow(stack, "tasks-refused")
    forget_what_was_counted(stack)
    assert {"broker-full", "tasks-refused"}.isdisjoint(name for name, _ in problems(stack))
    assert since() == before
    wait_until_healthy(stack)


def test_a_broker_outage_loses_no_order_that_was_accepted(stack: Stack, ledger: Ledger) -> None:
    def order(number: int) -> requests.Response:
        time.sleep(number * 0.5)
        return requests.post(f"{stack.url}/ledger/order/order-{number}", timeout=60)

    with ThreadPoolExecutor(64) as clients:
        orders = [clients.submit(order, number) for number in range(64)]  # for 32 seconds
        time.sleep(3)
        stack.compose("stop", "broker")
        time.sleep(22)  # longer than a request waits for the broker
        stack.compose("start", "broker")
        answers = [answer.result() for answer in orders]
    statuses = Counter(answer.status_code for answer in answers)
    print("orders", statuses, ledger.drain("order"))
    # Nobody is asked to send again what is saved, with a task that the broker did not take.
    assert {202, 500} <= set(statuses) <= {202, 500, 503}, errors(stack.compose("logs", "web-a"))
    for answer in answers:
        assert ("The data was saved" in answer.text) == (answer.status_code == 500), answer.text
    verdict = ledger.drain("order")
    assert (verdict.accepted, verdict.lost) == (statuses[202], 0)
    wait_until_healthy(stack)


# The figures of /metrics ----------------------------------------------------------------------------

only_redis = pytest.mark.parametrize("stack", ["redis"], indirect=True)


@only_redis
def test_each_task_is_counted_once_whatever_dies(stack: Stack, ledger: Ledger) -> None:
    count_tasks(
        stack, ledger, 14, faults.kill_pool_child, faults.kill_main_process, faults.kill_broker
    )


@only_redis
@pytest.mark.long
def test_each_task_is_counted_once_after_many_kills(stack: Stack, ledger: Ledger) -> None:
    def kill_broker(stack: Stack) -> None:  # while it is down tasks are refused
        kill_and_wait(stack, lambda: faults.kill_broker(stack), "broker")

    kinds = [
        faults.kill_main_process,
        faults.kill_pool_child,
        kill_broker,
        faults.cut_network,
        faults.recreate,
        faults.restart_broker,
    ]
    count_tasks(stack, ledger, 100, *kinds * 4)


@only_redis
def test_the_token_opens_the_page(stack: Stack) -> None:
    assert stack.get("/metrics").status_code == 403
    assert "stack_up" in scrape(stack)


@only_redis
def test_a_killed_web_instance_loses_no_request_that_was_reported(stack: Stack) -> None:
    page = ("200", "admin:login")

    def requests() -> int:
        return figures(scrape(stack), "stack_request_seconds_count")[page]

    before = requests()
    for _ in range(40):
        assert stack.get("/admin/login/").status_code == 200
    time.sleep(3)  # they are reported every two seconds
    webs = ("web-a", "web-b")
    pids = [main_process(stack, service) for service in webs]
    kill_and_wait(stack, lambda: [*map(faults.kill, pids)], *webs)
    assert requests() == before + 40
    # One that is stopped reports what is left.
    for _ in range(10):
        assert stack.get("/admin/login/").status_code == 200
    kill_and_wait(stack, lambda: stack.compose("restart", "--no-deps", *webs), *webs)
    assert requests() == before + 50
