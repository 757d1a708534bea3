"""Brokers and result backends that a project brings: what works with them, and what says that it does not."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .stack import PRODUCTION, Stack, wait_for

pytestmark = pytest.mark.long

PACKAGES = (
    "moto[server]==5.2.5 kombu[sqs,zookeeper] celery[memcache] sqlalchemy django-celery-results==2.6.0"
)
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
        stack.set(TASK_TIME_LIMIT=10)  # seconds
        yield stack
    finally:
        stack.remove()


def use(stack: Stack, *services: str, **settings: str) -> None:
    """Start web and the workers with these settings, and what they need beside them."""
    results = f"redis://:{stack.settings['CACHE_PASSWORD']}@cache:6379/1"
    stack.close_shell()
    stack.set(**{"BROKER": "redis", "CELERY_RESULT_BACKEND": results} | settings)
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
        "client = Client(); client.force_login(user);"
        f"print(client.{method}('/status/{path}', {data}).content.decode())"
    )


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
        "import json; from stack import queues;"
        "from stack.dashboard.live import live, message;"
        "import asyncio\n"
        "async def look():\n"
        "    async for event in live.listen():\n"
        "        if 'data: ' in event: return event\n"
        "print(asyncio.run(look()))"
    )
    event = json.loads(sqs.python(code).partition("data: ")[2])
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
    code = "from stack.heartbeat import address; print(address('sqs://key:secret@'))"
    sqs.python(f"import os; os.environ['AWS_DEFAULT_REGION'] = 'eu-west-3'; {code}")
