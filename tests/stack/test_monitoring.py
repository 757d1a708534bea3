"""Prometheus, of COMPOSE_PROFILES=monitoring: who sees it, what it finds, and whom it tells."""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.runbook import follow, problems

from .alarm import Alarm, Receivers
from .stack import PRODUCTION, Stack, wait_for

FASTER = 20  # so many times


@pytest.fixture(scope="module")
def staff(production: Stack) -> requests.Session:
    """A session of a member of staff."""
    return production.staff_session()


def query(stack: Stack, session: requests.Session, expression: str) -> list[dict]:
    """Return the result of a query, through the proxy."""
    url = f"{stack.url}/monitoring/api/v1/query"
    answer = session.get(url, params={"query": expression}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]["result"]


def fire(stack: Stack) -> set[str]:
    """Return the names of the alerts that fire."""
    url = "http://127.0.0.1:9090/monitoring/api/v1/alerts"
    answer = stack.compose("exec", "--no-TTY", "monitoring", "wget", "-q", "-O", "-", url)
    found = json.loads(answer)["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"}


def test_prometheus_has_the_figures_of_the_stack(
    production: Stack, staff: requests.Session
) -> None:
    wait_for("metrics", lambda: query(production, staff, "stack_up == 1"))
    assert {row["metric"]["service"] for row in query(production, staff, "stack_up == 1")} == {
        *("broker", "cache", "db")
    }
    assert len(query(production, staff, "up")) == 1
    rules = staff.get(f"{production.url}/monitoring/api/v1/rules", timeout=60).json()
    health = {rule["name"]: rule["health"] for rule in rules["data"]["groups"][0]["rules"]}
    assert len(health) > 5
    # A long query comes by POST.
    url = f"{production.url}/monitoring/api/v1/query"
    answer = staff.post(url, data={"query": f"up{' ' * 9000}"}, timeout=60)
    assert len(answer.json()["data"]["result"]) == 1


def test_a_request_with_a_body_leaves_the_connection_to_web_usable(production: Stack) -> None:
    for _ in range(5):
        answer = requests.request(
            "GET",
            f"{production.url}/monitoring/",
            data=b"GET /forged HTTP/1.1\r\n",
            allow_redirects=False,
            timeout=10,
        )
        assert answer.status_code == 302
        assert production.get("/healthz").text == "ok"


def test_the_rules_pass_their_tests_as_their_file_says(production: Stack) -> None:
    text = (production.folder / "monitoring/alerts-test.yaml").read_text()
    (command,) = re.findall(r"^# (docker compose .*)$", text, re.MULTILINE)
    assert "SUCCESS" in production.shell(command)


def test_without_the_profile_its_address_is_not_found(laptop: Stack) -> None:
    answer = laptop.get("/monitoring/")  # in development without a log-in, as the dashboard
    assert answer.status_code == 404
    assert "does not run" in answer.text


@pytest.mark.long
def test_each_command_of_its_runbook_works(production: Stack, staff: requests.Session) -> None:
    with staff.get(f"{production.url}/status/live/", stream=True, timeout=60) as stream:
        events = stream.iter_content(1)  # kept: without it the connection would be closed
        next(events)
        time.sleep(2.5)  # a request that takes long
    wait_for("its line", lambda: '"duration":' in follow(production, "pages-slow"))
    assert "default" in follow(production, "queue-grows")
    follow(production, "tasks-fail-often")
    follow(production, "broker-fills-up")
    assert "Images" in follow(production, "disk-fills-up")
    assert "CPU" in follow(production, "memory-short")
    assert "monitoring" in follow(production, "metrics-missing")
    production.wait_for_proxy()


# In a time of its own ------------------------------------------------------------------------------


def hasten(stack: Stack) -> None:
    """Let an hour of the rules take three minutes."""
    path = stack.folder / "monitoring/alerts.yaml"
    text = re.sub(
        r"\b(\d+)(h|m)\b",
        lambda found: f"{int(found[1]) * {'h': 3600, 'm': 60}[found[2]] // FASTER}s",
        path.read_text(),
    )
    path.write_text(text)
    stack.edit("monitoring/alerts.yaml", "> 7200", f"> {7200 // FASTER}")
    stack.edit("monitoring/prometheus.yaml", "interval: 30s", "interval: 2s")
    stack.edit("monitoring/prometheus.yaml", "interval: 1m", "interval: 3s")


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack on whose rules an hour lasts three minutes."""
    stack = Stack(tmp_path_factory.mktemp("fast"), PRODUCTION)
    try:
        stack.add_app(Path(__file__).parent / "probe")
        stack.set(COMPOSE_PROFILES="monitoring")
        hasten(stack)
        stack.up("--build")
        yield stack
    finally:
        stack.remove()


def failures(stack: Stack, count: int) -> None:
    """Send tasks that fail, and half as many that do not: five failures in a row are another problem."""
    stack.python(
        "from stack.tasks import sample\n"
        f"for number in range({count + count // 2}):\n"
        "    options = {'fail': number % 3 < 2, 'steps': 2, 'pause': 0}\n"
        "    sample.apply_async(kwargs=options, queue='default')"
    )


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    """A mail server, and a receiver of pings."""
    receivers = Receivers()
    try:
        yield receivers
    finally:
        receivers.remove()


@pytest.mark.long
def test_an_alert_and_its_end_reach_the_dashboard_and_a_mail_server(
    fast: Stack, receivers: Receivers, tmp_path: Path
) -> None:
    often = ("tasks-fail-often", "stack.tasks.sample")
    alarm = Alarm(fast, tmp_path / "vm", **receivers.settings())

    def mail() -> tuple[str, str]:
        """Return the mail of a problem that has lasted, or has been over, for five minutes."""
        alarm.run()
        alarm.age(300)
        alarm.run()
        return receivers.mails()[-1]

    assert fire(fast) == set()
    failures(fast, 1)
    time.sleep(5)  # Prometheus knows that one
    failures(fast, 20)
    sentence = wait_for("the alert", lambda: problems(fast).get(often))
    assert sentence.startswith("More than a fifth of the tasks stack.tasks.sample failed")
    assert fire(fast) == {"TasksFailOften"}
    subject, text = mail()
    assert "PROBLEM: " in subject
    assert " ".join(often) in subject
    assert f"- {sentence}" in text
    assert "docs/runbook.md#tasks-fail-often" in text
    wait_for("its end", lambda: often not in problems(fast))
    assert fire(fast) == set()
    subject, text = mail()
    assert subject.endswith(f"over: {' '.join(often)}")
    assert text.startswith(f"Over:\n- {sentence}")


@pytest.mark.long
def test_one_web_instance_is_enough_and_none_is_an_alert(fast: Stack) -> None:
    fast.compose("stop", "web-a")
    time.sleep(20)  # longer than five minutes
    assert fire(fast) == set()
    fast.compose("stop", "web-b")
    try:
        wait_for("the alert", lambda: fire(fast) == {"MetricsMissing"})
    finally:
        fast.compose("start", "web-a", "web-b")
    wait_for("its end", lambda: fire(fast) == set())
    fast.wait_for_proxy()


@pytest.mark.long
def test_no_alert_fires_in_two_hours_of_normal_work(
    fast: Stack, receivers: Receivers, tmp_path: Path
) -> None:
    since, fired = time.monotonic(), set()
    fast.python("from stack import metrics; metrics.activity.store().delete(metrics.FAILING)")
    alarm = Alarm(fast, tmp_path / "vm", **receivers.settings())  # in the time of the clock
    # A flood of fifty minutes in one queue, twice as much as its worker does.
    flood = (
        "import time\nfrom stack.tasks import sample\n"
        f"end = time.time() + {3000 // FASTER}\n"
        "while time.time() < end:\n"
        "    for _ in range(13): sample.apply_async(kwargs={'steps': 1}, queue='crawl')\n"
        "    time.sleep(1)"
    )
    shell = ["./manage.py", "shell", "--no-imports", "--command", flood]
    fast.compose("run", "--rm", "--detach", "--no-deps", "web", *shell)
    for service in ("beat", "worker-default", "cache", "web-a", "db", "broker", "monitoring"):
        fast.compose("restart", "--no-deps", service)
        wait_for("health", lambda service=service: fast.health(service) == "healthy")
        fired |= fire(fast)
        alarm.run()
    fast.set(LOG_LEVEL="DEBUG")  # all containers are replaced, as by a deploy
    fast.shell("ops/roll")
    fast.up()
    while time.monotonic() < since + 2 * 3600 / FASTER:
        fired |= fire(fast)
        alarm.run()
        time.sleep(2)
    assert fired == set()
    assert receivers.mails() == []
    longest = "max_over_time(stack_queue_waiting{queue='crawl'}[1h])"
    assert float(query(fast, fast.staff_session(), longest)[0]["value"][1]) > 200


def report(stack: Stack, vm: str, **figures: float) -> None:
    """Report as ops/alarm on a VM."""
    body = json.dumps({"vm": vm, "problems": [], "load": 0.1} | figures)
    code = f"from urllib.request import urlopen; urlopen('http://localhost:8000/vm', {body.encode()!r})"
    stack.compose("exec", "--no-TTY", "web-a", "python", "-c", code)


def limit_memory(stack: Stack, factor: float) -> None:
    """Let the broker use so many times what it uses now."""
    admin = 'REDISCLI_AUTH=$(cat /tmp/admin) redis-cli --user admin "$@"'
    redis = ("exec", "--no-TTY", "broker", "sh", "-c", admin, "sh")
    used = re.search(r"used_memory:(\d+)", stack.compose(*redis, "info", "memory"))[1]
    stack.compose(*redis, "config", "set", "maxmemory", str(int(factor * int(used))))


@pytest.mark.long
def test_each_other_alert_fires_and_ends(fast: Stack) -> None:
    def alerts() -> set[str]:
        """Return what fires, but for what the site sees itself."""
        return fire(fast) - {"StackProblem"}

    def causes(growth: float) -> None:
        """Report a disk that grows, or does not, and a memory that is used."""
        nonlocal disk
        disk += growth
        report(fast, "full", disk=disk, memory=0.97 if growth else 0.5)

    def slow_pages() -> None:
        """Request a page that takes three seconds, until all has fired."""
        while not fired.is_set():
            fast.get("/probe/slow")

    expected = {
        "QueueGrows",
        "PagesSlow",
        "BrokerFillsUp",
        "DiskFillsUp",
        "MemoryShort",
        "VmSilent",
    }
    begin, disk, fired = time.monotonic(), 0.1, threading.Event()
    fast.compose("stop", "worker-crawl")
    fast.send("crawl", steps=1)
    report(fast, "silent", disk=0.1, memory=0.5)
    limit_memory(fast, 1.2)
    seen: dict[str, float] = {}
    with ThreadPoolExecutor() as threads:
        pages = [threads.submit(slow_pages) for _ in range(12)]
        try:
            while expected - seen.keys() and time.monotonic() < begin + 900:
                causes(0.003)  # of an hour of three minutes some 0.1
                for name in alerts() - seen.keys():
                    seen[name] = time.monotonic() - begin
                time.sleep(4)
        finally:
            fired.set()
    for page in pages:
        page.result()
    assert seen.keys() == expected, seen
    fast.start("worker-crawl")
    limit_memory(fast, 10)

    def over() -> bool:
        causes(0)
        for vm in ("silent", os.uname().nodename):  # the second one's ops/alarm ran before
            report(fast, vm, disk=0.1, memory=0.5)
        return not alerts()

    wait_for("their end", over, seconds=400)
