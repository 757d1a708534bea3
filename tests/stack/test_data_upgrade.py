"""Data of another version of PostgreSQL, Redis or RabbitMQ: refused, upgraded, and the way back."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.helpers import SECONDS, Ledger, ledger_stack

from .stack import LAPTOP, Stack, wait_for
from .test_backup import make_user, ops, users


@dataclass
class Data:
    """What has data, where, and of which version it is."""

    name: str
    image: str
    folder: str
    before: str
    now: str


DATABASE = Data("PostgreSQL", "postgres", "/var/lib/postgresql", "17", "18")
BROKER = {
    "redis": Data("Redis", "redis", "/data", "7.0", "8.0"),
    "rabbitmq": Data("RabbitMQ", "rabbitmq", "/var/lib/rabbitmq", "4.0", "4.3"),
}
ROOT = Path(__file__).parents[2]
# script/machine/images.py builds them.
EARLIER = ["postgres:17", "rabbitmq:4.0-management", "redis:7.0"]

# A dump has no search path, so the function does not find its table when the row is restored.
UNRESTORABLE = """
CREATE FUNCTION f(integer) RETURNS boolean LANGUAGE plpgsql
    AS 'BEGIN RETURN EXISTS (SELECT FROM accounts_user); END';
CREATE TABLE t (i integer CHECK (f(i)));
INSERT INTO t VALUES (1);
"""


def in_volume(stack: Stack, service: str, script: str) -> str:
    """Run a script with the volume of a data service, as the user who owns it, in its folder."""
    folder = (DATABASE if service == "db" else BROKER[stack.settings["BROKER"]]).folder
    return subprocess.check_output(
        [
            *("docker", "run", "--rm", "--user=999:999", "--network=none", "--entrypoint=sh"),
            *(f"--volume={stack.slug}_{service}:{folder}", f"--workdir={folder}"),
            *("postgres:18", "-c", script),
        ],
        text=True,
    ).strip()


def contents(stack: Stack, service: str) -> str:
    """Return a digest of every file in the volume of a data service, with its name."""
    return in_volume(stack, service, "find . -type f -exec sha256sum {} + | sort | sha256sum")


@pytest.fixture(params=BROKER)
def data(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A broker, and beside one of them the database, which ran once; nothing runs."""
    stack = Stack(tmp_path, LAPTOP)
    try:
        stack.set(BROKER=request.param)
        services = ["db", "broker"] if request.param == "redis" else ["broker"]
        stack.compose("up", "--detach", "--wait", *services)
        stack.compose("down")
        yield stack
    finally:
        stack.remove()


def test_data_of_another_version_is_refused_with_a_sentence_and_not_touched(data: Stack) -> None:
    broker = BROKER[data.settings["BROKER"]]
    beside = [("db", DATABASE)] if broker.name == "Redis" else []
    for service, its in [*beside, ("broker", broker)]:
        for other in ("1.9", "99.0"):
            in_volume(data, service, f"mv {its.now} {other}")
            before = contents(data, service)
            printed = data.compose("up", "--detach", "--wait", service, check=False)
            assert "unhealthy" in printed or "exited" in printed or "restarting" in printed
            log = data.compose("logs", "--no-log-prefix", service)
            sentence = f"The volume has data of {its.name} {other}, this is {its.now}: see docs/"
            assert sentence in log
            data.compose("down")
            assert contents(data, service) == before
            done = ops(data, "upgrade-data", "--check")
            assert done.returncode == 1
            assert f"The data of {service} is of version {other}" in done.stderr
            in_volume(data, service, f"mv {other} {its.now}")
    done = ops(data, "upgrade-data", "--check")
    assert (done.returncode, done.stderr) == (0, "")


def name_images(stack: Stack, when: str) -> None:
    """Write the image tags of "before" or "now" into the compose files, as an upgrade or revert does."""
    for file, data in [
        ("compose.yaml", DATABASE),
        *[(f"broker-{name}.yaml", broker) for name, broker in BROKER.items()],
    ]:
        path = stack.folder / file
        pattern = rf"(image: {data.image}):[\d.]+"
        text, found = re.subn(pattern, rf"\g<1>:{getattr(data, when)}", path.read_text())
        assert found == 1, file
        path.write_text(text)


def database(stack: Stack, statement: str) -> str:
    """Execute a statement as the superuser; return what it selects."""
    psql = ["psql", "--username=app_admin", "--dbname=app", "-qtA", "-c", statement]
    return stack.compose("exec", "--no-TTY", "db", *psql).strip()


def upgrade_data(stack: Stack, *options: str) -> str:
    """Run ops/upgrade-data, saying yes to what it asks; return what it printed."""
    done = ops(stack, "upgrade-data", *options, answer="yes\n")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def make_earlier_images() -> None:
    """Pull or build the images of the earlier versions."""
    images = [f"--image={name}" for name in EARLIER]
    subprocess.run(["script/bootstrap", *images], cwd=ROOT, check=True)


@pytest.fixture(params=BROKER)
def earlier(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack with the ledger on the versions before, running."""
    make_earlier_images()
    stack = ledger_stack(tmp_path, broker=request.param)
    try:
        name_images(stack, "before")
        stack.up("--build")
        yield stack
    finally:
        stack.remove()


@pytest.mark.long
def test_data_of_the_versions_before_is_upgraded_and_back_and_again(earlier: Stack) -> None:
    stack, ledger = earlier, Ledger(earlier)
    broker = BROKER[stack.settings["BROKER"]]
    make_user(stack, "before")
    database(stack, "CREATE ROLE reader LOGIN; GRANT SELECT ON accounts_user TO reader")
    stack.python(
        "from django.core.files import base, storage; "
        "storage.default_storage.save('a.txt', base.ContentFile('media'))"
    )
    tasks = len(ledger.send("work", "flight", 200, SECONDS))
    tasks += len(ledger.send("work", "flight-later", 20, SECONDS, countdown=5))
    wait_for("tasks in flight", lambda: ledger.done("flight") > 5)

    name_images(stack, "now")
    printed = upgrade_data(stack)
    assert "db: 17 -> 18" in printed
    assert "contents of table" in printed  # its progress

    def check() -> None:
        """Nothing is missing: rows, rights, media, tasks."""
        assert users(stack) == {"before"}
        granted = "SELECT has_table_privilege('reader', 'accounts_user', 'SELECT')"
        assert database(stack, granted) == "t"
        assert stack.get("/media/a.txt").text == "media"
        wait_for("all tasks", lambda: ledger.done("flight") == tasks)
        verdict = ledger.judge("flight")
        assert (verdict.accepted, verdict.lost, verdict.doubled) == (tasks, 0, 0)

    check()
    make_user(stack, "after")
    upgrade_data(stack, "--back")
    name_images(stack, "before")
    stack.up()
    check()  # the tasks that waited then are run here, too

    # Somebody starts the new images without having upgraded.
    name_images(stack, "now")
    stack.compose("up", "--detach", "--wait", check=False)
    log = stack.compose("logs", "--no-log-prefix", "db", "broker")
    assert "The volume has data of PostgreSQL 17" in log
    assert f"RabbitMQ {broker.before}" in log or f"Redis {broker.before}" in log
    upgrade_data(stack)
    check()
    assert "nothing to do" in upgrade_data(stack)
    assert set(in_volume(stack, "db", "ls -A").split()) == {".given-up-18", "17", "18"}
    upgrade_data(stack, "--confirm")
    assert in_volume(stack, "db", "ls -A") == "18"
    assert in_volume(stack, "broker", "ls -d [0-9]*") == broker.now
    stack.compose("down")
    stack.up()
    check()


@pytest.mark.long
@pytest.mark.parametrize("earlier", ["redis"], indirect=True)
def test_data_that_cannot_be_upgraded_stays_as_it_was(earlier: Stack) -> None:
    stack = earlier
    make_user(stack, "before")
    database(stack, UNRESTORABLE)
    name_images(stack, "now")
    done = ops(stack, "upgrade-data", "--yes")
    assert done.returncode == 1
    assert "All data is as it was before." in done.stderr
    assert in_volume(stack, "db", "ls").split() == ["17"]
    assert in_volume(stack, "broker", "ls").split() == ["7.0"]
    name_images(stack, "before")
    stack.up()
    assert users(stack) == {"before"}
