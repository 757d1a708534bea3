"""docs/how-to.md, "Schedules in the database": beat with schedulers of other packages, in production."""

import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.faults.helpers import main_process

from .stack import LAPTOP, PRODUCTION, Stack, free_port, wait_for
from .test_how_to import append, blocks

pytestmark = pytest.mark.long

HEADING = "Schedules in the database"
SERVICES = ["beat", "worker-default", "web-a"]
IN_DATABASE = """\
from django_celery_beat.models import IntervalSchedule, PeriodicTask
second = IntervalSchedule.objects.create(every=1, period="seconds")
kwargs = '{"steps": 1, "pause": 0}'
PeriodicTask.objects.create(name="often", task="stack.tasks.sample", interval=second, kwargs=kwargs)
"""
IN_SETTINGS = """\
CELERY_BEAT_SCHEDULE["often"] = {
    "task": "stack.tasks.sample",
    "schedule": 1,
    "kwargs": {"steps": 1, "pause": 0},
}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The project after the first half of the recipe, running with what a schedule needs."""
    answers = {"example": "false", "queues": "none"}
    stack = Stack(tmp_path_factory.mktemp("beat"), LAPTOP, **answers)
    try:
        manual = (stack.folder / "docs/how-to.md").read_text()
        append(stack, "config/settings.py", blocks(stack, HEADING)[0])
        path = stack.folder / "pyproject.toml"
        django, *packages = sorted(re.findall(r'`("(?:django|.*beat)>=[^`]*")`', manual), key=len)
        lines = "".join(f"    {line},\n" for line in (django, *packages))
        path.write_text(re.sub(r'    "django>=.*\n', lines, path.read_text()))
        dependencies = (stack.folder / "docs/dependencies.md").read_text()
        (commands,) = re.findall(r"```sh\n(.*?)```", dependencies, re.DOTALL)
        stack.shell("\n".join(commands.splitlines()[:2]))

        port, tls_port = free_port(), free_port()
        stack.set(COMPOSE_FILE=PRODUCTION, HTTPS="false")
        stack.set(HTTP_PORT=f"127.0.0.1:{port}", HTTPS_PORT=f"127.0.0.1:{tls_port}")
        (password,) = re.findall(r"remove the line `(.*?)` of `beat`", manual)
        stack.edit("compose.yaml", f"      {password}\n", "")
        stack.up("--build", *SERVICES)
        yield stack
    finally:
        stack.remove()


def wait_until_it_sends(stack: Stack) -> None:
    """Wait until the worker has run three more tasks of the schedule."""

    def ended() -> int:
        log = stack.compose("logs", "--no-log-prefix", "worker-default")
        return len(re.findall(r"stack\.tasks\.sample\[.*?\] succeeded", log))

    before = ended()
    wait_for("three more", lambda: ended() >= before + 3)


def is_shown(stack: Stack) -> bool:
    """Return whether the dashboard has heard of beat."""
    return stack.python("from stack import activity; print(activity.read([])[1])") == "True"


def test_what_is_in_the_database_is_sent(project: Stack) -> None:
    project.python(IN_DATABASE)
    wait_until_it_sends(project)
    wait_for("its heartbeat", lambda: project.health("beat") == "healthy")
    assert is_shown(project)
    project.manage("check")


def test_beat_goes_on_when_the_database_was_restarted(project: Stack) -> None:
    project.compose("restart", "db")
    wait_until_it_sends(project)


def test_beat_goes_on_while_the_database_is_silent_and_afterwards(project: Stack) -> None:
    project.compose("pause", "db")
    try:
        wait_until_it_sends(project)
    finally:
        project.compose("unpause", "db")
    wait_until_it_sends(project)


def test_beat_is_replaced_when_it_hangs_in_the_database(project: Stack) -> None:
    def started() -> str:
        return project.containers("beat")["beat"].attrs["State"]["StartedAt"]

    before = started()
    psql = ("exec", "--no-TTY", "db", "psql", "-c")
    lock = "BEGIN; LOCK TABLE django_celery_beat_periodictasks; SELECT pg_sleep(600)"
    project.compose("exec", "--detach", *psql[1:], lock)
    try:
        wait_for("another beat", lambda: started() != before)
    finally:
        end = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK%'"
        )
        project.compose(*psql, end)
    assert "No heartbeat for 30 seconds" in project.compose("logs", "beat")
    wait_until_it_sends(project)


def test_redbeat_goes_on_when_beat_was_killed(project: Stack) -> None:
    in_database, redbeat = blocks(project, HEADING)
    project.edit("config/settings.py", in_database, f"{redbeat}{IN_SETTINGS}")
    project.edit(
        "compose.yaml",
        "      SERVICE: beat\n",
        '      SERVICE: beat\n      POSTGRES_PASSWORD: ""\n',
    )
    wait_for("the end of the silence", lambda: project.health("db") == "healthy")
    project.up("--build", *SERVICES)
    wait_until_it_sends(project)
    wait_for("its heartbeat", lambda: project.health("beat") == "healthy")
    assert is_shown(project)
    os.kill(main_process(project, "beat"), signal.SIGKILL)
    wait_until_it_sends(project)
