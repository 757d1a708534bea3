"""WatchdogSec=: what hangs is replaced, and nothing else is."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.faults.helpers import children, main_process
from tests.stack import acme
from tests.stack.stack import Stack, wait_for

MINUTE = 60  # seconds, in which the watchdog of an idle machine has replaced what hangs
BROKERS = ["elsewhere", "paused"]
PYTHON = ["web-a", "web-b", "worker-crawl", "worker-default", "worker-notify", "beat"]


def starts(stack: Stack) -> dict[str, tuple[str, int]]:
    """Return when each container was started and how often it was restarted."""
    containers = stack.containers()
    return {
        service: (
            containers[service].attrs["State"]["StartedAt"],
            containers[service].attrs["RestartCount"],
        )
        for service in PYTHON
    }


def test_a_web_worker_whose_event_loop_never_returns_is_replaced(production: Stack) -> None:
    def workers() -> set[int]:
        found = set()
        for service in ("web-a", "web-b"):
            master = main_process(production, service)
            found |= set(children(production.containers()[service], master))
        return found

    before = workers()
    with contextlib.suppress(requests.Timeout):
        requests.get(f"{production.url}/probe/hang", timeout=1)
    wait_for("another worker", lambda: len(workers() - before) >= 1)
    assert production.get("/healthz").status_code == 200


def start_to_sleep(stack: Stack, *seconds: int) -> list[str]:
    """Send a task that sleeps to worker-notify for each of `seconds`; return their ids once all run."""
    code = (
        "from probe.tasks import sleep;"
        f"print(*(sleep.apply_async((seconds,), queue='notify').id for seconds in {seconds}))"
    )
    tasks = stack.python(code).split()
    wait_for("they run", lambda: all(task in str(stack.inspect("active")) for task in tasks))
    return tasks


def test_a_stopped_main_process_is_replaced(production: Stack) -> None:
    """And meanwhile a worker that waits for its last task is not."""
    (task,) = start_to_sleep(production, MINUTE)
    services = ["web-a", "worker-crawl", "beat"]
    before = starts(production)
    with ThreadPoolExecutor(1) as thread:
        stop = thread.submit(production.compose, "stop", "worker-notify")  # as long as the task
        for service in services:
            os.kill(main_process(production, service), signal.SIGSTOP)
        for service in services:
            wait_for(
                f"{service} is replaced",
                lambda service=service: starts(production)[service] != before[service],
            )
        stop.result()
    assert production.containers()["worker-notify"].attrs["State"]["ExitCode"] == 0
    assert production.result(task, timeout=1) == "slept"
    production.start(*services, "worker-notify")
    assert production.result(production.send("crawl", steps=1)).startswith("Done by")
    assert "No heartbeat for 30 seconds" in production.compose("logs", *services)


def test_busy_children_and_unavailable_peers_are_not_a_hang(production: Stack) -> None:
    before = starts(production)
    tasks = start_to_sleep(production, MINUTE + 5, MINUTE + 10)
    production.compose("pause", "broker", "db")
    try:
        time.sleep(MINUTE + 15)
    finally:
        production.compose("unpause", "broker", "db")
    wait_for("all ready again", lambda: production.get("/readyz").status_code == 200)
    assert [production.result(task) for task in tasks] == ["slept", "slept"]
    assert production.result(production.send("crawl", steps=1)).startswith("Done by")
    assert starts(production) == before
    production.restart_paused("broker", "db")


ELSEWHERE = """
services:
  elsewhere: &redis
    image: redis:8.0
    networks: [inside]
    volumes: ["./tls:/tls:ro"]
    command: [redis-server, --save, "", --protected-mode, "no", --tls-port, "6380",
      --tls-cert-file, /tls/cert.pem, --tls-key-file, /tls/key.pem, --tls-auth-clients, "no"]
  paused: *redis
  worker-crawl:
    volumes: ["./tls:/tls:ro"]
    environment: {CELERY_BROKER_URL: "rediss://elsewhere:6380/0?ssl_cert_reqs=required&ssl_ca_certs=/tls/cert.pem"}
    extra_hosts: ["broker:127.0.0.1"]
  worker-notify:
    environment: {CELERY_BROKER_URL: redis://paused/0}
"""


@contextlib.contextmanager
def brokers_elsewhere(stack: Stack) -> Iterator[Callable[..., str]]:
    """Start two more brokers, which crawl, with TLS, and notify use; yield compose with them."""
    file = stack.folder / "elsewhere.yaml"
    file.write_text(ELSEWHERE)
    tls = stack.folder / "tls"
    tls.mkdir()
    acme.self_signed(tls, "elsewhere")
    (tls / "key.pem").chmod(0o644)
    names = ("compose.yaml", "compose.production.yaml", file.name)

    def compose(*arguments: str) -> str:
        return stack.compose(*(f"--file={name}" for name in names), *arguments)

    try:
        compose("up", "--detach", "--wait", "--no-deps", *BROKERS, "worker-crawl", "worker-notify")
        yield compose
    finally:
        compose("rm", "--stop", "--force", *BROKERS)
        file.unlink()
        shutil.rmtree(tls)
        stack.up()


@pytest.mark.long
def test_the_broker_that_counts_is_the_one_in_use(production: Stack) -> None:
    """Crawl hangs and its own broker answers; notify waits for its own, and "broker" answers."""
    with brokers_elsewhere(production) as compose:
        send = "from probe.tasks import sleep; print(sleep.apply_async((0,), queue='crawl', ignore_result=True))"
        shell = ("./manage.py", "shell", "--no-imports", "--command", send)
        task = compose("exec", "--no-TTY", "worker-crawl", *shell).strip()
        done = f"[{task}] succeeded"
        wait_for("a task by TLS", lambda: done in production.compose("logs", "worker-crawl"))
        before = starts(production)
        compose("pause", "paused")
        os.kill(main_process(production, "worker-crawl"), signal.SIGSTOP)
        time.sleep(MINUTE + 15)
        wait_for(
            "crawl is replaced",
            lambda: starts(production)["worker-crawl"] != before["worker-crawl"],
        )
        assert starts(production)["worker-notify"] == before["worker-notify"]
        compose("unpause", "paused")
        wait_for("notify works again", lambda: production.health("worker-notify") == "healthy")
        assert starts(production)["worker-notify"] == before["worker-notify"]
