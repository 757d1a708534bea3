"""The stack with the answers `broker=rabbitmq` and `example=false`."""

import ast
import html
import json
import re
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import requests

from tests.faults.helpers import Ledger, ledger_stack
from tests.runbook import follow, problems

from .stack import Stack, figures, wait_for

QUEUES = ["default", "crawl", "notify"]


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack on RabbitMQ."""
    stack = ledger_stack(tmp_path_factory.mktemp("rabbitmq"), broker="rabbitmq")
    try:
        stack.up("--build")
        yield stack
    finally:
        stack.remove()


def test_the_pages_are_there_without_the_example(rabbitmq: Stack) -> None:
    assert rabbitmq.get("/").status_code == 200
    assert rabbitmq.get("/status/").headers["Location"] == "/admin/login/?next=/status/"


def test_each_queues_tasks_are_run_by_its_own_worker(rabbitmq: Stack) -> None:
    for queue in QUEUES:
        task = rabbitmq.send(queue, steps=1)
        assert rabbitmq.result(task) == f"Done by {queue}@{rabbitmq.slug}."


def test_the_queues_are_quorum_queues_with_one_consumer_each(rabbitmq: Stack) -> None:
    def rows() -> dict[str, list[str]]:
        listed = rabbitmq.compose(
            "exec", "--no-TTY", "broker",
            "rabbitmqctl", "list_queues", "--quiet", "--no-table-headers", "name", "type", "consumers",
        )  # fmt: skip
        found = {name: rest for name, *rest in map(str.split, listed.splitlines())}
        return {queue: found[queue] for queue in QUEUES}

    # RabbitMQ counts them every few seconds.
    wait_for("one each", lambda: rows() == {queue: ["quorum", "1"] for queue in QUEUES})


def test_a_countdown_waits_in_the_broker_and_then_runs_once(rabbitmq: Stack) -> None:
    code = (
        "from stack.tasks import sample;"
        "print(sample.apply_async(kwargs={'steps': 1}, queue='crawl', countdown=2).get(timeout=180))"
    )
    assert rabbitmq.python(code) == f"Done by crawl@{rabbitmq.slug}."


def test_a_countdown_that_ends_before_its_queue_is_there_runs_once_it_is(rabbitmq: Stack) -> None:
    """As after a restart. RabbitMQ's own interval is three minutes, which is more than the limit here."""
    control = ("exec", "--no-TTY", "broker", "rabbitmqctl", "--quiet")

    def delayed() -> int:
        """Count them; RabbitMQ does so itself every five seconds."""
        listed = rabbitmq.compose(*control, "list_queues", "--no-table-headers", "name", "messages")
        rows = [line.split() for line in listed.splitlines()]
        return sum(int(count) for name, count in rows if name.startswith("celery_delayed"))

    code = (
        "from stack.tasks import sample;"
        "print(sample.apply_async(kwargs={'steps': 1}, queue='notify', countdown=16).id)"
    )
    rabbitmq.compose("stop", "worker-notify")
    try:
        task = rabbitmq.python(code)
        rabbitmq.compose(*control, "delete_queue", "notify")
        wait_for("it is delayed", lambda: delayed() == 1)
        time.sleep(16)  # it is due, and can go nowhere
    finally:
        rabbitmq.containers()["worker-notify"].start()
    assert rabbitmq.result(task, timeout=120) == f"Done by notify@{rabbitmq.slug}."


@pytest.mark.parametrize("when", ["countdown=0.5", "eta=now() + timedelta(seconds=0.5)"])
def test_a_task_may_be_delayed_by_less_than_a_second(rabbitmq: Stack, when: str) -> None:
    code = (
        "from datetime import timedelta; from django.utils.timezone import now;"
        "from stack.tasks import sample;"
        f"print(sample.apply_async(kwargs={{'steps': 1}}, queue='notify', {when}).id)"
    )
    assert rabbitmq.result(rabbitmq.python(code)) == f"Done by notify@{rabbitmq.slug}."


def test_the_log_names_the_queue_of_a_task_that_the_broker_delayed(rabbitmq: Stack) -> None:
    code = (
        "from stack.tasks import sample;"
        "print(sample.apply_async(kwargs={'steps': 1}, queue='crawl', countdown=1).id)"
    )
    task = rabbitmq.python(code)

    def lines() -> list[str]:
        log = rabbitmq.containers()["worker-crawl"].logs().decode()
        return [line for line in log.splitlines() if task in line]

    wait_for("the task has ended", lines)
    (line,) = map(json.loads, lines())
    assert (line["queue"], line["outcome"], line["request_id"]) == ("crawl", "succeeded", task)


def test_metrics_count_each_task(rabbitmq: Stack) -> None:
    code = (
        "import urllib.request as r; print(r.urlopen('http://web-b:8000/metrics').read().decode())"
    )

    def ended() -> Counter[tuple[str, ...]]:
        """Return the figures of the sample task, also of what its workers had not reported yet."""
        rabbitmq.compose("restart", "--no-deps", "worker-notify", "worker-crawl")
        found = figures(rabbitmq.python(code), "stack_tasks_total")
        return Counter({row: count for row, count in found.items() if row[2].endswith(".sample")})

    before = ended()
    for _ in range(3):
        rabbitmq.result(rabbitmq.send("notify", steps=1, pause=0))
    failed = rabbitmq.send("crawl", steps=2, pause=0, fail=True)
    wait_for("it failed", lambda: failed in rabbitmq.manage("failed"))
    expected = {
        ("notify", "succeeded", "stack.tasks.sample"): 3,
        ("crawl", "failed", "stack.tasks.sample"): 1,
    }
    assert ended() - before == expected


def test_failed_tasks_are_shown_and_sent_again(rabbitmq: Stack) -> None:
    def row() -> str:
        return "".join(line for line in rabbitmq.manage("failed").splitlines() if task in line)

    task = rabbitmq.send("notify", steps=2, pause=0, fail=True)
    first = wait_for("it failed", row)
    assert "SampleError: This task was sent to fail." in rabbitmq.manage("inspect_task", task)
    rabbitmq.manage("failed", "--retry", task)
    wait_for("it failed again, later", lambda: row() not in ("", first))


def test_an_unknown_task_is_a_failed_one_and_its_worker_goes_on(rabbitmq: Stack) -> None:
    started = rabbitmq.containers()["worker-crawl"].attrs["State"]["StartedAt"]
    code = "from config.celery import app; print(app.send_task('no.such.task', queue='crawl').id)"
    task = rabbitmq.python(code)
    wait_for("it failed", lambda: task in rabbitmq.manage("failed"))
    assert "UnknownTask: unknown task no.such.task" in rabbitmq.manage("inspect_task", task)
    assert rabbitmq.result(rabbitmq.send("crawl", steps=1)).startswith("Done by")
    assert rabbitmq.containers()["worker-crawl"].attrs["State"]["StartedAt"] == started


def test_every_worker_obeys_a_rate_limit(rabbitmq: Stack) -> None:
    rabbitmq.inspect("ping")  # each is connected again, when a test before has restarted the broker
    printed = rabbitmq.manage("rate_limit", "stack.tasks.sample", "0")
    assert [line.split() for line in printed.splitlines()[1:]] == [
        [f"{queue}@{rabbitmq.slug}", "0"] for queue in sorted(QUEUES)
    ]


def login(stack: Stack) -> requests.auth.HTTPBasicAuth:
    """Return that of Flower."""
    return requests.auth.HTTPBasicAuth("admin", stack.settings["FLOWER_PASSWORD"])


def known_to_flower(stack: Stack) -> set[str]:
    """Return the queues that workers have reported to Flower, after it has asked them again."""
    # It asks by itself only once, when it starts, perhaps before the workers.
    workers = stack.get("/flower/api/workers?refresh=1", auth=login(stack)).json()
    return {queue["name"] for info in workers.values() for queue in info.get("active_queues", [])}


def waiting(stack: Stack) -> dict[str, int]:
    """Return the number of messages in each queue, as Flower's page has it."""
    page = stack.get("/flower/broker", auth=login(stack)).text
    rows = re.findall(r'<tr id="(.+?)">\s*<td>.+?</td>\s*<td[^>]*>(\d+)</td>', page)
    return {name: int(messages) for name, messages in rows}


def test_flower_shows_how_many_messages_wait_in_each_queue(rabbitmq: Stack) -> None:
    nothing = dict.fromkeys(QUEUES, 0)
    # Before it knows any worker, its page shows all queues of the settings.
    wait_for("Flower knows the queues", lambda: known_to_flower(rabbitmq) == set(QUEUES))
    wait_for("they are empty", lambda: waiting(rabbitmq) == nothing)
    rabbitmq.compose("stop", "worker-notify")
    try:
        tasks = [rabbitmq.send("notify", steps=1) for _ in range(2)]
        wait_for("Flower counts", lambda: waiting(rabbitmq) == nothing | {"notify": 2})
    finally:
        rabbitmq.containers()["worker-notify"].start()
    assert [rabbitmq.result(task)[:4] for task in tasks] == ["Done", "Done"]


def test_each_worker_reports_its_statistics(rabbitmq: Stack) -> None:
    for stats in rabbitmq.inspect("stats").values():
        assert stats["broker"]["transport_options"]["on_blocked"] == "refuse"


def test_the_brokers_password_is_in_no_process_list(rabbitmq: Stack) -> None:
    for service, container in rabbitmq.containers().items():
        if container.status == "running":
            processes = str(container.top(ps_args="-eo pid,args")["Processes"])
            assert rabbitmq.settings["BROKER_PASSWORD"] not in processes, service


def dead_letters(stack: Stack) -> int:
    """Count them, as RabbitMQ did in the last seconds."""
    listed = stack.compose(
        "exec", "--no-TTY", "broker", "rabbitmqctl", "list_queues", "name", "messages"
    )
    return int(re.search(r"^dead\.letters\s+(\d+)$", listed, re.MULTILINE)[1])


def ready(stack: Stack, queue: str) -> int:
    """Count what waits in a queue, at this moment."""
    code = (
        "from stack import queues; channel = queues.connect().default_channel;"
        f"print(channel.queue_declare({queue!r}, passive=True).message_count)"
    )
    return int(stack.python(code))


@pytest.fixture
def four_dead(rabbitmq: Stack) -> Iterator[list[str]]:
    """Four dead letters of the queue crawl, whose worker is stopped; their ids."""
    send = (
        "from stack.tasks import sample;"
        "print([sample.apply_async(kwargs={{'steps': 1}}, queue='crawl', {}).id for _ in range({})])"
    )
    reject = (
        "from stack import queues; channel = queues.connect().default_channel;"
        "message = channel.basic_get('crawl');"
        "channel.basic_reject(message.delivery_tag, requeue=False)"
    )
    rabbitmq.compose("stop", "worker-crawl")
    try:
        # It has "died" of its countdown before somebody rejects it.
        tasks = ast.literal_eval(rabbitmq.python(send.format("countdown=1", 1)))
        wait_for("the countdown is over", lambda: ready(rabbitmq, "crawl"))
        rabbitmq.python(reject)
        tasks += ast.literal_eval(rabbitmq.python(send.format("expires=1", 3)))
        wait_for("all are dead", lambda: ready(rabbitmq, "dead.letters") == 4)
        yield tasks
    finally:
        rabbitmq.manage("failed", "--dead-letters", "--drop", "all", "--yes")
        rabbitmq.manage("purge_queue", "crawl", "--yes")
        rabbitmq.start("worker-crawl")


def test_who_is_killed_while_dead_letters_are_sent_again_loses_none(
    rabbitmq: Stack, four_dead: list[str]
) -> None:
    """Once when all are taken, and once when the first is in its queue and not yet deleted."""
    kill = "lambda *args: os.kill(os.getpid(), signal.SIGKILL)"
    code = (
        "import os, signal, django; django.setup(); from stack import failed;"
        "from stack.brokers import rabbitmq_dead_letters;"
        "rabbitmq_dead_letters.Hand.{0} = {1}; list(failed.change_letters(lambda entry: {2}, True))"
    )
    for name, chosen, sent in (("put_back", "False", 0), ("remove", "True", 1)):
        script = code.format(name, kill, chosen)
        done = rabbitmq.containers()["web-a"].exec_run(["python", "-c", script])
        assert done.exit_code == 137, done.output
        wait_for("all are back", lambda: ready(rabbitmq, "dead.letters") == 4)
        assert ready(rabbitmq, "crawl") == sent
    code = (
        "from stack import brokers, queues;print(brokers.current().dead_letters(queues.connect()))"
    )
    wait_for("RabbitMQ has counted", lambda: rabbitmq.python(code) == "4")


def test_staff_sees_dead_letters_and_sends_them_again_or_drops_them(
    rabbitmq: Stack, four_dead: list[str]
) -> None:
    session = rabbitmq.staff_session()
    url = f"{rabbitmq.url}/status/failed/"

    def look() -> str:
        text = session.get(url).text
        fields = re.findall(r'name="(csrfmiddlewaretoken|kind|until)" value="(.+?)"', text)
        form.update(fields)
        return html.unescape(re.sub(r"<[^>]+>", " ", text))

    def change(do: str, **fields: str) -> str:
        data = {"csrfmiddlewaretoken": form["csrfmiddlewaretoken"], "do": do, "dead": ""}
        return session.post(f"{url}change/", data=data | fields).text

    form: dict[str, str] = {}
    text = look()
    assert re.search(r"Dead letter, rejected in crawl:\s+1 task, the newest", text)
    assert re.search(r"Dead letter, expired in crawl:\s+3 tasks, the newest", text)
    assert [task for task in four_dead if text.count(f" {task} ")] == four_dead
    assert "It expired before a worker took it." in text
    assert '{"steps": 1}' in text
    keys = dict(
        re.findall(
            r"<code>([0-9a-f-]{36})</code>.*?name=\"id\" value=\"(.+?)\"",
            session.get(url).text,
            re.DOTALL,
        )
    )

    # To the queue where it died, not to the one where it waited for its countdown.
    assert "1 task sent again." in change("retry", id=keys[four_dead[0]])
    assert "1 task dropped." in change("drop", id=keys[four_dead[1]])
    assert "another has sent them again or dropped them" in change("drop", id=keys[four_dead[1]])
    assert ready(rabbitmq, "crawl") == 1
    rabbitmq.start("worker-crawl")
    assert rabbitmq.result(four_dead[0]).startswith("Done by crawl@")

    look()
    question = change("retry", kind=form["kind"])
    assert "Send 2 tasks again?" in question
    until = html.unescape(re.search(r'name="until" value="(.+?)"', question)[1])
    assert ready(rabbitmq, "dead.letters") == 2
    assert "2 tasks sent again." in change("retry", kind=form["kind"], until=until, sure="")
    for task in four_dead[2:]:  # they do not expire again
        assert rabbitmq.result(task).startswith("Done by crawl@")
    assert "No task has failed." in look() or "Dead letter" not in look()

    containers = rabbitmq.containers()
    logs = "".join(containers[name].logs().decode() for name in ("web-a", "web-b"))
    lines = [json.loads(line) for line in logs.splitlines() if '"stack.failed"' in line]
    done = [(line["task_id"], " dropped " in line["message"]) for line in lines]
    assert sorted(done) == sorted((task, task == four_dead[1]) for task in four_dead)
    assert {line["user"].isdecimal() for line in lines} == {True}
    assert all(line["request_id"] for line in lines)


def test_a_poison_that_cannot_be_counted_is_a_dead_letter_and_can_be_sent_back(
    rabbitmq: Stack,
) -> None:
    ledger = Ledger(rabbitmq)
    look, send_back, drop = rabbitmq.manual("broker.md", "Dead letters")

    def dead() -> int:
        return dead_letters(rabbitmq)

    rabbitmq.compose("stop", "worker-crawl")
    ledger.send("poison", "poison", 1)
    ledger.send("work", "behind", 10, 0.1)
    rabbitmq.compose("stop", "cache")
    rabbitmq.containers()["worker-crawl"].start()  # compose would start the cache too
    wait_for("it is a dead letter", lambda: dead() == 1)
    assert ledger.drain("behind").lost == 0
    assert ledger.ask("started, done", "poison") == ["6", "0"]
    rabbitmq.start("cache")

    assert 'dead letter: delivery_limit ["poison-0"] {}' in rabbitmq.shell(look)
    assert dead() == 1, "looking took it"
    rabbitmq.shell(send_back)
    wait_for("it runs again", lambda: ledger.ask("started", "poison") == ["11"])
    wait_for("and fails", lambda: "and never ended" in rabbitmq.compose("logs", "worker-crawl"))
    # RabbitMQ counts a quorum queue every few seconds.
    wait_for("there is no dead letter", lambda: dead() == 0)

    # What is no task at all.
    code = (
        "from config.celery import app;"
        "producer = app.producer_pool.acquire(block=True);"
        "producer.publish({}, exchange='crawl', routing_key='crawl')"
    )
    rabbitmq.python(code)
    wait_for("it is a dead letter", lambda: dead() == 1)
    rabbitmq.shell(drop)
    wait_for("there is none again", lambda: dead() == 0)


def test_dead_letters_are_a_problem_until_they_are_sent_again(rabbitmq: Stack) -> None:
    dead = ("dead-letters", "")
    rabbitmq.compose("stop", "worker-notify")
    try:
        code = (
            "from stack.tasks import sample;"
            "print(sample.apply_async(kwargs={'steps': 1}, queue='notify', expires=1).id)"
        )
        task = rabbitmq.python(code)
        # RabbitMQ counts a quorum queue every few seconds.
        wait_for("it is named", lambda: dead in problems(rabbitmq))
    finally:
        rabbitmq.start("worker-notify")
    assert task in follow(rabbitmq, "dead-letters")
    assert rabbitmq.result(task) == f"Done by notify@{rabbitmq.slug}."
    wait_for("it is gone", lambda: dead not in problems(rabbitmq))


def test_a_worker_is_replaced_by_a_second_one_of_its_name(rabbitmq: Stack) -> None:
    before = rabbitmq.containers()["worker-crawl"].id
    rabbitmq.shell("ops/roll worker-crawl")
    worker = rabbitmq.containers()["worker-crawl"]
    assert worker.id != before
    assert worker.attrs["RestartCount"] == 0
    assert len(rabbitmq.inspect("ping")) == len(QUEUES)
    assert rabbitmq.result(rabbitmq.send("crawl", steps=1)) == f"Done by crawl@{rabbitmq.slug}."


def test_readyz_names_the_broker_when_it_is_dead(rabbitmq: Stack) -> None:
    assert rabbitmq.get("/readyz").json() == {"database": "ok", "broker": "ok", "cache": "ok"}
    rabbitmq.compose("stop", "broker")
    try:
        answer = rabbitmq.get("/readyz").json()
    finally:
        rabbitmq.start("broker")
    assert answer == {"database": "ok", "broker": "down", "cache": "ok"}


def test_the_guest_account_does_not_exist(rabbitmq: Stack) -> None:
    users = rabbitmq.compose(
        "exec", "--no-TTY", "broker", "rabbitmqctl", "list_users", "--quiet", "--no-table-headers"
    )
    assert [line.split()[0] for line in users.splitlines()] == ["app"]


def test_the_broker_changes_as_the_manual_says_and_back_and_no_task_is_lost(
    rabbitmq: Stack,
) -> None:
    ledger = Ledger(rabbitmq)
    for broker, name in (("redis", "Redis"), ("rabbitmq", "RabbitMQ")):
        ledger.send("work", f"before-{broker}", 20, 0.1)
        ledger.send("work", f"later-{broker}", 1, 0, countdown=8)
        close, drain, *rest = rabbitmq.manual("broker.md", f"Changing to {name}")
        rabbitmq.shell(close)
        rabbitmq.shell(drain)
        assert ledger.done(f"before-{broker}") == 20
        assert ledger.done(f"later-{broker}") == 1
        for command in rest:
            rabbitmq.shell(command)
        assert rabbitmq.containers()["broker"].image.tags[0].startswith(f"{broker}:")
        ledger.send("work", f"after-{broker}", 5, 0)
        assert ledger.drain(f"after-{broker}").lost == 0
