"""Brokers and result backends that a project brings: what works with them, and what says that it does not."""

import json
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from .stack import PRODUCTION, Stack, wait_for

pytestmark = pytest.mark.long

PACKAGES = "moto[server]==5.2.5 kombu[sqs,zookeeper] celery[memcache] sqlalchemy django-celery-results==2.6.0"
WORKERS = ["worker-default", "worker-crawl", "worker-notify"]
QUEUES = ["default", "crawl", "notify"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A project whose image has the packages; nothing runs."""
    stack = Stack(
        tmp_path_factory.mktemp("elsewhere"), f"{PRODUCTION}:elsewhere.yaml", example="false"
    )
    try:
        shutil.copytree(Path(__file__).parent / "elsewhere", stack.folder / "elsewhere")
        (stack.folder / "elsewhere/compose.yaml").rename(stack.folder / "elsewhere.yaml")
        stack.edit(
            "Dockerfile",
            "COPY --from=dependencies /venv /venv\n",
            "COPY --from=dependencies /venv /venv\n"
            f"RUN pip --python /venv/bin/python install --no-cache-dir {PACKAGES}\n",
        )
        stack.edit(
            "config/settings.py", '    "stack",\n', '    "stack",\n    "django_celery_results",\n'
        )
        stack.compose("build", "migrate", "zookeeper")
        # The container of the first is needed for rpc:// only.
        stack.set(BROKER="rabbitmq", TASK_TIME_LIMIT=10)
        yield stack
    finally:
        stack.remove()


def use(stack: Stack, *services: str, **settings: str) -> None:
    """Start web and the workers with these settings, and what they need beside them."""
    results = f"redis://:{stack.settings['CACHE_PASSWORD']}@cache:6379/1"
    stack.close_shell()
    stack.set(**{"CELERY_RESULT_BACKEND": results} | settings)
    if services:
        stack.compose("up", "--detach", *services)
    stack.compose("up", "--detach", "--wait", "web-a", *WORKERS)


def ready(stack: Stack) -> dict[str, str]:
    """Return what /readyz says."""
    code = (
        "import urllib.error, urllib.request;"
        "request = urllib.request.Request('http://localhost:8000/readyz');\n"
        "try: print(urllib.request.urlopen(request).read().decode())\n"
        "except urllib.error.HTTPError as error: print(error.read().decode())"
    )
    return json.loads(stack.python(code))


UP = {"database": "ok", "broker": "ok", "cache": "ok"}


def visit(stack: Stack, method: str, path: str, **data: str) -> str:
    """Return what a page answers to a member of staff."""
    return stack.python(
        "from django.contrib.auth import get_user_model; from django.test import Client;"
        "user, _ = get_user_model().objects.get_or_create(username='staff', is_staff=True);"
        "client = Client(SERVER_NAME='localhost'); client.force_login(user);"
        f"print(client.{method}('/status/{path}', {data}).content.decode())"
    )


def accepted(stack: Stack, queue: str) -> str:
    """Return the id of a sample task; "" when the broker did not accept it."""
    try:
        return stack.send(queue, steps=1)
    except AssertionError:
        return ""


def failing(stack: Stack) -> str:
    """Send a task that fails, wait until it has, return its id."""
    code = (
        "from stack.tasks import sample;"
        "result = sample.apply_async(kwargs={'steps': 2, 'pause': 0, 'fail': True}, queue='notify');"
        "result.get(timeout=60, propagate=False); print(result.id)"
    )
    return stack.python(code)


# Amazon SQS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sqs(stack: Stack) -> Iterator[Stack]:
    """The stack with moto's server for SQS."""
    use(stack, "sqs", CELERY_BROKER_URL="sqs://key:secret@sqs:5000")
    yield stack
    stack.compose("rm", "--stop", "--force", "sqs")


def test_on_sqs_each_queues_tasks_are_run_by_its_own_worker(sqs: Stack) -> None:
    for queue in QUEUES:
        task = sqs.send(queue, steps=1)
        assert sqs.result(task) == f"Done by {queue}@{sqs.slug}."


def test_on_sqs_a_killed_workers_task_is_redelivered(sqs: Stack) -> None:
    task = sqs.send("crawl", steps=6, pause=1)
    state = f"from config.celery import app; print(app.AsyncResult('{task}').state)"
    wait_for("it runs", lambda: sqs.python(state) == "PROGRESS")
    sqs.containers()["worker-crawl"].kill()
    sqs.start("worker-crawl")
    assert sqs.result(task) == f"Done by crawl@{sqs.slug}."
    # SQS itself marks nothing; without a count a task that kills its worker would do so for ever.
    count = f"from django.core.cache import cache; print(cache.get('redeliveries:{task}'))"
    assert sqs.python(count) == "1"


def test_on_sqs_the_commands_do_what_they_can_and_say_what_they_cannot(sqs: Stack) -> None:
    sqs.compose("stop", "worker-notify")
    time.sleep(11)  # its last request, which the server answers when nobody listens any more
    tasks = [sqs.send("notify"), sqs.send("notify")]
    shown = sqs.manage("queues", "notify")
    assert shown.splitlines()[1].split()[:4] == ["notify", "2", "-", "down"]
    assert "This broker reports neither how long a task has waited" in shown
    found = sqs.manage("inspect_task", tasks[0])
    assert "with this broker no worker can be asked" in found
    assert sqs.manage("purge_queue", "notify", "--yes") == "Deleted 2 tasks from notify.\n"
    assert "no tasks can be moved" in sqs.manage("move_queue", "old", "default", check=False)
    told = sqs.manage("rate_limit", "stack.tasks.sample", "1/s", check=False)
    assert "no worker can be told" in told
    sqs.start("worker-notify")
    task = failing(sqs)
    assert task in sqs.manage("failed")
    assert "is sent again" in sqs.manage("failed", "--retry", task)
    assert "SampleError" in sqs.manage("inspect_task", task)
    sqs.manage("check")
    sqs.manage("check", "--tag", "queues", "--fail-level", "WARNING")


def test_on_sqs_the_dashboard_shows_it(sqs: Stack) -> None:
    code = (
        "import asyncio; from stack.dashboard.live import live\n"
        "async def look():\n"
        "    async for event in live.listen():\n"
        "        if 'data: ' in event:\n"
        "            return event\n"
        "print(asyncio.run(look()))"
    )

    def seen() -> dict[str, Any]:
        event = json.loads(sqs.python(code).partition("data: ")[2])
        return event if event["services"]["broker"] is not None else {}

    event = wait_for("an answer of the broker", seen)
    assert event["services"]["broker"] is True
    assert event["queues"]["crawl"]["waiting"] == {"tasks": 0, "oldest": None}
    assert event["queues"]["crawl"]["workers"]["up"] == 1


def test_on_sqs_an_outage_is_seen_and_workers_outlive_it(sqs: Stack) -> None:
    assert ready(sqs) == UP
    server = sqs.containers()["sqs"]
    server.pause()
    try:
        wait_for("/readyz says so", lambda: ready(sqs)["broker"] == "down")
    finally:
        server.unpause()
    assert sqs.result(sqs.send("crawl", steps=1)) == f"Done by crawl@{sqs.slug}."
    assert ready(sqs) == UP


def test_the_watchdog_finds_sqs_in_its_region(sqs: Stack) -> None:
    region = "import os; os.environ['AWS_DEFAULT_REGION'] = 'eu-west-3'"
    code = f"{region}; from stack.heartbeat import address; print(address('sqs://'))"
    assert sqs.python(code) == "sqs.eu-west-3.amazonaws.com 443 tls"


# Zookeeper ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zookeeper(stack: Stack) -> Iterator[Stack]:
    """The stack with Zookeeper."""
    use(stack, "zookeeper", CELERY_BROKER_URL="zookeeper://zookeeper:2181/shop")
    yield stack
    stack.compose("rm", "--stop", "--force", "zookeeper")


def test_on_zookeeper_each_queues_tasks_are_run_by_its_own_worker(zookeeper: Stack) -> None:
    for queue in QUEUES:
        task = zookeeper.send(queue, steps=1)
        assert zookeeper.result(task) == f"Done by {queue}@{zookeeper.slug}."
    zookeeper.manage("check")


def test_on_zookeeper_no_session_is_left_behind(zookeeper: Stack) -> None:
    """The server accepts 60 from one address."""
    code = (
        "from stack import health, queues\n"
        "for _ in range(70):\n"
        "    health.check_broker()\n"
        "    with queues.connect() as connection:\n"
        "        queues.waiting(connection)\n"
        "print('all')"
    )
    assert zookeeper.python(code) == "all"
    assert ready(zookeeper) == UP


def test_on_zookeeper_workers_wait_for_it(zookeeper: Stack) -> None:
    server = zookeeper.containers()["zookeeper"]
    server.stop()
    assert ready(zookeeper)["broker"] == "down"
    worker = zookeeper.containers()["worker-crawl"]
    before = worker.logs().count(b"Cannot connect")
    worker.restart()
    wait_for("it says so", lambda: worker.logs().count(b"Cannot connect") > before)
    server.start()
    # One that was there all the time, and one that began without a broker.
    for queue in ("default", "crawl"):
        task = wait_for("it is accepted", partial(accepted, zookeeper, queue))
        assert zookeeper.result(task) == f"Done by {queue}@{zookeeper.slug}."
    assert {zookeeper.containers()[name].attrs["RestartCount"] for name in WORKERS} == {0}


# Results ------------------------------------------------------------------------------------------

ONLY_REDIS = "Failed tasks are known only if the results are in Redis."
RPC = "With rpc:// only who sent a task receives its result."


@pytest.mark.parametrize("name", ["rpc", "memcached", "sqlalchemy", "django-db"])
def test_results_are_elsewhere(stack: Stack, name: str) -> None:
    settings = stack.settings
    urls = {
        "rpc": "rpc://",
        "memcached": "cache+memcached://memcached:11211/",
        "sqlalchemy": f"db+postgresql+psycopg://app:{settings['POSTGRES_PASSWORD']}@db/app",
        "django-db": "django-db",
    }
    services = ["memcached"] if name == "memcached" else []
    use(stack, *services, CELERY_BROKER_URL="", CELERY_RESULT_BACKEND=urls[name])
    stack.manage("check")
    assert "SUCCESS" in stack.manage("sample", *QUEUES)
    task = failing(stack)
    shown = stack.manage("inspect_task", task)
    assert (RPC if name == "rpc" else "SampleError: This task was sent to fail.") in shown
    assert ONLY_REDIS in stack.manage("failed", check=False)
    assert ONLY_REDIS in visit(stack, "get", "")
    assert json.loads(visit(stack, "post", "retry/", id=task)) == {"error": ONLY_REDIS}
    sent = json.loads(visit(stack, "post", "sample/", queue="crawl"))
    assert (sent["follow"], sent["why_not"]) == ((False, RPC) if name == "rpc" else (True, ""))
    if sent["follow"]:
        path = f"sample/{sent['id']}/"
        wait_for("it is done", lambda: "Done by crawl" in visit(stack, "get", path))
