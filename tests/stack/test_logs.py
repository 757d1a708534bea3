"""What the stack tells of itself: one line an event, one name for a request and all its tasks."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from docker.models.containers import Container

from .stack import Stack, wait_for

PYTHON = ["web-a", "web-b", "worker-default", "worker-crawl", "worker-notify", "beat", "flower"]


def lines(stack: Stack, service: str, since: float = 0) -> list[str]:
    """Return what a service has logged since then, in seconds since 1970."""
    container = stack.containers()[service]
    return container.logs(since=since or None).decode().splitlines()


def log_lines(stack: Stack, name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the service and content of every line with this name of a request."""
    found = stack.compose("logs", "--no-color").splitlines()
    pairs = [line.split("|", 1) for line in found if name in line]
    # Some versions of compose write more than the name of the service before the "|".
    return [(re.search(r"([a-z-]+)-\d+ *$", first)[1], json.loads(text)) for first, text in pairs]


def test_one_id_finds_a_request_and_all_its_tasks(production: Stack) -> None:
    answer = production.get("/probe/again", headers={"X-Request-ID": "forged", "User-Agent": "x"})
    name = answer.headers["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{32}", name)
    wait_for("the last line", lambda: len(log_lines(production, name)) >= 5)
    found = log_lines(production, name)
    assert {line["request_id"] for _, line in found} == {name}

    def web(service: str) -> str:
        return "web" if service.startswith("web-") else service

    assert sorted(
        (web(service), line["logger"], line.get("task"), line.get("outcome"))
        for service, line in found
        if line["logger"] != "celery.app.trace"
    ) == [
        ("proxy", "nginx.access", None, None),
        ("web", "probe.views", None, None),
    ]
    (own,) = (line for _, line in found if line["logger"] == "probe.views")
    assert (own["message"], own["answer"]) == ("asked by x", 42)

    tasks = [(service, line) for service, line in found if line["logger"] == "celery.app.trace"]
    assert sorted(
        (service, line["task"], line["queue"], line["outcome"]) for service, line in tasks
    ) == [
        ("worker-default", "probe.tasks.again", "default", "retry"),
        ("worker-default", "probe.tasks.again", "default", "succeeded"),
        ("worker-notify", "probe.tasks.sleep", "notify", "succeeded"),
    ]
    assert {line["task_id"] for _, line in tasks if line["task"].endswith("again")} == {
        answer.json()["id"]
    }
    assert all(line["duration"] >= 0 for _, line in tasks)
    assert "forged" not in production.compose("logs")


def test_a_health_check_is_not_logged(production: Stack) -> None:
    since = time.time()
    checks = ["stack/watchdog", "page", "8000", "/healthz"]
    production.compose("exec", "--no-TTY", "web-a", *checks)
    name = production.get("/probe/again").headers["X-Request-ID"]
    wait_for("the last line", lambda: len(log_lines(production, name)) >= 5)
    for service in ("proxy", "web-a"):
        assert [line for line in lines(production, service, since) if "/healthz" in line] == []


def test_each_task_of_beat_has_its_own_request_id(production: Stack) -> None:
    since = time.time()

    def ticks() -> list[dict[str, Any]]:
        found = lines(production, "worker-default", since)
        return [json.loads(line) for line in found if "probe.tasks.tick" in line]

    wait_for("two ticks", lambda: len(ticks()) >= 2)
    assert all(tick["request_id"] == tick["task_id"] for tick in ticks())
    assert len({tick["request_id"] for tick in ticks()}) == len(ticks())


def test_every_line_is_an_object_from_the_start_on(production: Stack) -> None:
    services = ["web-a", "worker-notify", "beat", "flower", "proxy"]
    since = time.time()
    production.compose("restart", "--timeout", "60", *services)
    wait_for("all healthy", lambda: {production.health(name) for name in services} == {"healthy"})
    production.get("/probe/again")
    requests.post(f"{production.url}/probe/fail", data={"mail": "x"}, timeout=60)
    production.result(production.send("notify", steps=1))
    # As docs/logs.md says: nginx's own troubles, and what Celery prints when it is told to stop.
    plain = {
        "proxy": r"\d{4}/\d\d/\d\d [\d:]+ \[\w+\] .*",
        "worker-notify": r"|worker: Warm shutdown \(MainProcess\)",
    }

    def found_of(service: str) -> list[str]:
        found = lines(production, service, since)
        return [line for line in found if not re.fullmatch(plain.get(service, "(?!)"), line)]

    for service in services:
        # nginx writes its lines once per second.
        found = wait_for(f"lines of {service}", lambda name=service: found_of(name))
        assert [line for line in found if not line.startswith('{"time":')] == []
        for line in found:
            assert {"level", "logger", "message"} <= json.loads(line).keys(), line


def test_a_client_cannot_forge_a_log_line(production: Stack) -> None:
    since = time.time()
    agent = 'x" \\ {"level": "CRITICAL"} é'
    path = f'/probe/again?%0A{{"level":"CRITICAL"}}&at={since}'
    answer = production.get(path, headers={"User-Agent": agent.encode()})
    name = answer.headers["X-Request-ID"]
    missing = production.get(f"/nothing%0D%0A%7B%22level%22:%22CRITICAL%22%7D/{since}")
    wait_for("the end", lambda: len(log_lines(production, name)) >= 5)
    (proxy,) = (line for service, line in log_lines(production, name) if service == "proxy")
    assert proxy["user_agent"] == agent
    (own,) = (line for _, line in log_lines(production, name) if line["logger"] == "probe.views")
    assert agent.encode().decode("latin-1") in own["message"]
    found = log_lines(production, missing.headers["X-Request-ID"])
    assert sorted(line["logger"] for _, line in found) == ["django.request", "nginx.access"]
    for service in [*PYTHON, "proxy"]:
        for line in lines(production, service, since):
            assert not line.startswith("{") or json.loads(line)["level"] != "CRITICAL", line


def test_a_task_that_times_out_is_logged_with_its_request_id(production: Stack) -> None:
    limits = {"soft_time_limit": 1, "time_limit": 2}
    code = f"from probe.tasks import hold_on; print(hold_on.apply_async(**{limits}).id)"
    task = production.python(code)
    # Its child is killed, so that the worker itself has the last word.
    wait_for("the end", lambda: "Hard time limit" in str(log_lines(production, task)))
    for _, line in log_lines(production, task):
        assert line["request_id"] == line["task_id"] == task
        assert (line["task"], line["queue"]) == ("probe.tasks.hold_on", "default")


@pytest.mark.parametrize(("level", "logged"), [("DEBUG", 3), ("WARNING", 2), ("ERROR", 1)])
def test_the_level_of_env_holds(production: Stack, level: str, logged: int) -> None:
    code = (
        "import logging; l = logging.getLogger('shop');"
        "l.info('shop-line'); l.warning('shop-line'); l.error('shop-line')"
    )
    arguments = ["run", "--rm", "--no-TTY", "--no-deps", "--env", f"LOG_LEVEL={level}", "web"]
    printed = production.compose(
        *arguments, "./manage.py", "shell", "--no-imports", "--command", code, check=False
    )
    assert len(re.findall('"message": "shop-line"', printed)) == logged
    serve = (
        "gunicorn & until stack/watchdog page 8000 /healthz; do sleep 0.2; done; kill $! && wait $!"
    )
    started = production.compose(*arguments, "bash", "-c", serve, check=False)
    assert ("Starting gunicorn" in started) is (level == "DEBUG")


def test_development_logs_are_text(laptop: Stack) -> None:
    task = laptop.send("crawl", steps=1, pause=0)
    wait_for("the line", lambda: task in "".join(lines(laptop, "worker-crawl")))
    (line,) = (line for line in lines(laptop, "worker-crawl") if task in line)
    pattern = (
        r"[\d-]{10} [\d:.]{12}\+00:00 INFO celery.app.trace Task stack.tasks.sample.* \["
        + task
        + r"\]"
    )
    assert re.fullmatch(pattern, line), line


# Sentry -------------------------------------------------------------------------------------------


def test_without_an_address_nothing_of_sentry_is_loaded(production: Stack) -> None:
    code = "import sys, config.celery; print(any('sentry' in name for name in sys.modules))"
    assert production.python(code) == "False"


@pytest.fixture
def sentry(production: Stack) -> Iterator[Container]:
    """A server that takes errors, with the address of which the stack's .env is completed."""
    tag = f"{production.slug}-sentry"
    env = production.folder / ".env"
    before = env.read_text()
    changed = ["web-a", "web-b", "worker-notify", "flower"]
    production.docker.images.build(rm=True, path=str(Path(__file__).parent / "sentry"), tag=tag)
    container = production.docker.containers.create(tag, name=tag)
    try:
        for network in ("edge", "outside"):
            production.docker.networks.get(f"{production.slug}_{network}").connect(
                container, aliases=["sentry"]
            )
        container.start()
        production.docker.images.get(f"{production.slug}:latest").tag(production.slug, "v9")
        production.set(SENTRY_DSN="http://key@sentry:9000/1", IMAGE_TAG="v9")
        production.up("--no-deps", *changed)
        yield container
    finally:
        env.write_text(before)
        production.up("--no-deps", *changed)
        container.remove(force=True)


def test_errors_reach_sentry_without_data_of_the_user(production: Stack, sentry: Container) -> None:
    def events() -> dict[str, dict[str, Any]]:
        found = [json.loads(line) for line in sentry.logs().decode().splitlines()]
        return {event["tags"]["service"]: event for event in found}

    answer = requests.post(
        f"{production.url}/probe/fail?mail=of-the-query",
        data={"mail": "of-the-form"},
        cookies={"session": "of-the-cookie"},
        auth=("user", "of-the-header"),
        timeout=60,
    )
    assert answer.status_code == 500
    wait_for("both", lambda: len(events()) >= 2)
    found = events()
    assert {
        service: (event["exception"]["values"][0]["value"], event["release"])
        for service, event in found.items()
    } == {"web": ("the view fails", "v9"), "notify": ("the task fails", "v9")}
    name = answer.headers["X-Request-ID"]
    assert {event["tags"]["request_id"] for event in found.values()} == {name}
    assert found["notify"]["tags"]["task"] == "probe.tasks.fail"
    secrets = re.findall(r"of-the-\w+", sentry.logs().decode())
    assert secrets == []
    assert len(sentry.logs().decode().splitlines()) == 2
