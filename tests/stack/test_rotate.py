"""Every secret is replaced while the site is used."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import requests

from .stack import PRODUCTION, Stack, wait_for

NAMES = ["SECRET_KEY", "FLOWER_PASSWORD", "POSTGRES_PASSWORD", "BROKER_PASSWORD", "CACHE_PASSWORD"]
LOG_IN = """
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.backends.db import SessionStore

user, _ = get_user_model().objects.get_or_create(username="guest", is_staff=True, is_superuser=True)
for _ in range(3):
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    print(settings.SESSION_COOKIE_NAME, session.session_key)
"""
STILL_VALID = """
import psycopg, redis
from celery import current_app
from django.conf import settings

def connect(server, url):
    try:
        if server == "database":
            psycopg.connect(url, connect_timeout=5).close()
        elif server == "broker":
            current_app.connection_for_write(url).ensure_connection(max_retries=1).release()
        else:
            redis.Redis.from_url(url).ping()
    except Exception:
        return False
    return True

print([name for name, url in URLS.items() if connect(name, url)])
"""
FINISHED = """
from config.celery import app
print([app.AsyncResult(task).get(timeout=180)[:4] for task in TASKS].count("Done"))
"""


class Load:
    """Visitors who are logged in, and others who send tasks, on a connection of their own each time."""

    def __init__(self, stack: Stack) -> None:
        """Log in."""
        self.stack, self.over = stack, threading.Event()
        self.visitors: list[requests.Session] = []
        for line in stack.python(LOG_IN).splitlines():
            visitor = requests.Session()
            visitor.headers["Connection"] = "close"
            visitor.cookies.set(*line.split(), domain="localhost.local")
            self.visitors.append(visitor)
        self.failures: list[str] = []
        self.tasks: list[str] = []
        self.answers = 0

    def __enter__(self) -> "Load":
        """Begin."""
        kinds = [partial(self.visit, visitor) for visitor in self.visitors]
        self.threads = [
            threading.Thread(target=self.go_on, args=(kind,)) for kind in [*kinds, self.send]
        ]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End, when each has its answer."""
        self.over.set()
        for thread in self.threads:
            thread.join()

    def go_on(self, ask: Callable[[], requests.Response]) -> None:
        """Ask again and again."""
        while not self.over.wait(0.2):
            try:
                answer = ask()
                self.answers += 1
                if answer.status_code != 200:
                    self.failures.append(f"{answer.url}: {answer.status_code}")
            except requests.RequestException as error:
                self.failures.append(repr(error))

    def visit(self, visitor: requests.Session) -> requests.Response:
        """Ask for a page that is for staff; Django may give the session another key."""
        url = f"{self.stack.url}/admin/accounts/user/"
        return visitor.get(url, timeout=60, allow_redirects=False)

    def send(self) -> requests.Response:
        """Send a task by a page."""
        answer = requests.get(f"{self.stack.url}/probe/send/default", timeout=60)
        if answer.status_code == 200:
            self.tasks.append(answer.json()["id"])
        time.sleep(1)  # each takes a second, and two run at the same time
        return answer


def kill_while_it_replaces(stack: Stack, what: str) -> None:
    """Run ops/rotate, and kill it and what it has started when it prints this."""
    command = ["ops/rotate", "--wait=500"]
    with subprocess.Popen(
        command,
        cwd=stack.folder,
        env=stack.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as rotate:
        seen = []
        for line in rotate.stdout:
            seen.append(line)
            if line.startswith(what):
                os.killpg(rotate.pid, signal.SIGKILL)
                return
    raise AssertionError(f"never: {what}\n{''.join(seen)}")


def still_valid(stack: Stack, secrets: dict[str, str]) -> str:
    """Return which servers accept the passwords among these."""
    urls = {
        "database": f"postgresql://app:{secrets['POSTGRES_PASSWORD']}@db/app",
        "broker": f"redis://:{secrets['BROKER_PASSWORD']}@broker:6379/0",
        "cache": f"redis://:{secrets['CACHE_PASSWORD']}@cache:6379/0",
    }
    if stack.settings["BROKER"] == "rabbitmq":
        urls["broker"] = f"amqp://app:{secrets['BROKER_PASSWORD']}@broker:5672//"
    return stack.python(f"URLS = {urls!r}\n{STILL_VALID}")


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def production(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A running stack, with pages that send tasks."""
    folder = tmp_path_factory.mktemp("rotate")
    stack = Stack(folder, PRODUCTION, broker=request.param, queues="none", example="false")
    try:
        stack.add_app(Path(__file__).parent / "probe")
        stack.up("--build")
        yield stack
    finally:
        stack.remove()


@pytest.mark.long
def test_all_secrets_are_replaced_under_load(production: Stack) -> None:
    before = production.settings
    data = ("db", "broker", "cache")
    running = {name: production.containers()[name].attrs["State"]["StartedAt"] for name in data}
    start = time.monotonic()
    with Load(production) as load:
        kill_while_it_replaces(production, "web-a, web-b: starting")
        printed = production.shell("ops/rotate --wait=500")
        sent = len(load.tasks)
        wait_for("a task after it", lambda: len(load.tasks) > sent)
    print(f"{time.monotonic() - start:.0f} s, {load.answers} answers, {len(load.tasks)} tasks")
    assert load.failures == []
    finished = production.python(f"TASKS = {load.tasks!r}\n{FINISHED}")
    assert int(finished) == len(load.tasks) > 0
    assert printed.startswith("Going on with ")
    after = production.settings
    assert {name for name in after if after[name] != before.get(name)} == {
        *NAMES,
        "SECRET_KEY_FALLBACKS",
    }
    assert after["SECRET_KEY_FALLBACKS"] == before["SECRET_KEY"]
    assert (
        production.python("from django.conf import settings as s; print(s.SECRET_KEY)")
        == (after["SECRET_KEY"])
    )
    beat = "".join(production.containers()["beat"].attrs["Config"]["Env"])
    assert not [key for key in (before["SECRET_KEY"], after["SECRET_KEY"]) if key in beat]
    assert still_valid(production, before) == "[]"
    assert still_valid(production, after) == "['database', 'broker', 'cache']"
    for password, status in ((before, 401), (after, 200)):
        auth = ("admin", password["FLOWER_PASSWORD"])
        wait_for(
            "Flower", lambda a=auth, s=status: production.get("/flower/", auth=a).status_code == s
        )
    # Nothing was restarted, and what is restarted knows the new ones.
    assert running == {
        name: production.containers()[name].attrs["State"]["StartedAt"] for name in data
    }
    for name in data:
        production.containers()[name].restart()
    production.start(*data)
    assert still_valid(production, after) == "['database', 'broker', 'cache']"
    # Also when compose makes new containers.
    production.up()
    assert still_valid(production, after) == "['database', 'broker', 'cache']"
    assert still_valid(production, before) == "[]"
