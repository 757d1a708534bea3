"""Deploys that fail or are cut short: the site serves throughout, and the next one is whole."""

import re
import subprocess

import pytest

from tests.stack.stack import wait_for

from .load import Visitors
from .vm import ProductionVm

WAIT = "--wait=400"  # seconds for a container; three groups of tests share two cores

# Each is a version that cannot work: its last layer, how long it may take, and what it says.
BROKEN = {
    "no-migration": (
        """
COPY <<END probe/migrations/__init__.py
# A package.
END
COPY <<END probe/migrations/0001_initial.py
from django.db import migrations

class Migration(migrations.Migration):
    operations = [migrations.RunSQL("CREATE TABLE half (); SELECT 1 / 0")]
END
""",
        WAIT,
        r"This failed: docker compose .* migrate\.",
    ),
    "no-module": ("USER root\nRUN rm -r probe\nUSER 10001\n", WAIT, r"This failed: .* migrate\."),
    "no-answer": (
        "COPY <<END config/asgi.py\nimport time\n\ntime.sleep(3600)\nEND\n"
        "COPY <<END /srv/static/site.css\n/* Never live. */\nEND\n",
        "--wait=15",
        r"The web of this version does not answer within 15 s\.",
    ),
}
BROKEN_BEAT = """
USER root
RUN echo 'CELERY_BEAT_SCHEDULER = "no.scheduler"' >> config/settings.py
USER 10001
"""


def last_line(printed: str) -> str:
    """Return it without the time in front."""
    return re.sub(r"^\[[\d:]+\] ", "", printed.rstrip().splitlines()[-1])


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read what a command says until a line has these words; return all of it."""
    printed = ""
    for line in process.stdout:
        printed += line
        if words in line:
            return printed
    raise AssertionError(f"It never printed {words!r}:\n{printed}")


@pytest.mark.parametrize("name", BROKEN)
def test_a_version_that_cannot_work_is_not_taken_live(vm: ProductionVm, name: str) -> None:
    layer, wait, why = BROKEN[name]
    before, containers, style = vm.version(), vm.running(), vm.get("/static/site.css").text
    tag = vm.image(name, layer)
    with Visitors(vm) as visitors:
        printed = vm.deploy(tag, wait, code=1)
    stays = rf"{why} Not taken live; {before} serves as before\."
    assert re.fullmatch(stays, last_line(printed)), printed
    assert visitors.failures == []
    assert visitors.versions == {before}
    assert vm.running() == containers
    assert vm.get("/static/site.css").text == style


def test_a_configuration_that_nginx_refuses_is_not_loaded(vm: ProductionVm) -> None:
    before, containers = vm.version(), vm.running()
    tag = vm.image("nonsense", "")
    vm.stack.edit("nginx/pages.conf", "    internal;\n", "    nonsense;\n")
    try:
        printed = vm.deploy(tag, WAIT, code=1)
    finally:
        vm.stack.edit("nginx/pages.conf", "    nonsense;\n", "    internal;\n")
    assert 'unknown directive "nonsense"' in printed
    assert last_line(printed).endswith(f"Not taken live; {before} serves as before.")
    assert vm.running() == containers


def test_the_next_command_removes_what_a_killed_deploy_left(vm: ProductionVm) -> None:
    before = vm.version()
    slow, broken = (vm.image(name, BROKEN[name][0]) for name in ("no-answer", "no-module"))
    look = f"docker ps --all --quiet --filter name={vm.stack.slug}-trial"
    with vm.start_ops("deploy", vm.host, slow, WAIT) as process:
        read_until(process, "trying the new web")
        wait_for("the container", lambda: vm.here(look))
        vm.here("ops/status")  # meanwhile it is not removed
        assert vm.here(look)
        vm.run("pkill", "-KILL", "-f", "ops/release")
    assert process.returncode != 0
    assert vm.here(look)
    vm.here("ops/status")
    assert vm.here(look) == ""

    vm.deploy(broken, WAIT, code=1)
    tags = vm.here(f"docker image ls --format '{{{{.Tag}}}}' {vm.stack.slug}").split()
    assert "no-answer" not in tags
    assert {before, "no-module"} <= set(tags)


def test_a_deploy_does_not_change_the_broker(vm: ProductionVm) -> None:
    containers = vm.running()
    printed = vm.deploy(f"--tag={vm.version()}", "--set", "BROKER=rabbitmq", code=1)
    assert "change it as docs/broker.md says. Nothing was changed." in printed
    assert vm.running() == containers
    assert vm.settings()["BROKER"] == "redis"


@pytest.mark.long
def test_from_half_of_a_version_and_one_that_falls_ill_the_way_leads_back(
    vm: ProductionVm,
) -> None:
    before, services = vm.version(), set(vm.running())
    half, ill = vm.image("half", "ENV HALF=1\n"), vm.image("ill", BROKEN_BEAT)
    with Visitors(vm) as visitors:
        with vm.start_ops("deploy", vm.host, half, WAIT) as process:
            read_until(process, "web-a, web-b: starting the successors")
            vm.run("pkill", "-KILL", "-f", "ops/release")
        assert process.returncode != 0
        running = "docker ps --format '{{.Image}} {{.Label \"com.docker.compose.service\"}}'"
        assert f"{vm.stack.slug}:half worker-crawl\n" in vm.here(running)
        printed = vm.deploy(ill, WAIT, code=1)
    assert last_line(printed) == f"ill did not become healthy; {before} is live again."
    assert "No module named 'no'" in printed
    assert f"beat does not become healthy. Going back to {before}." in printed
    vm.wait_until_healthy(services)
    assert vm.version() == before
    assert visitors.failures == []
    assert {before} <= visitors.versions <= {before, "half", "ill"}


def test_a_rollback_and_a_deploy_refuse_a_second_one_meanwhile(
    vm: ProductionVm, two_versions: None
) -> None:
    new, services = vm.version(), set(vm.running())
    with Visitors(vm) as visitors:
        vm.ops("rollback", "--host", vm.host)
        old = vm.version()
        assert old != new
        # Static files without a hash in their names, too, are those of this version.
        compare = "docker compose run --rm -T --no-deps migrate diff -rq /srv/static /srv/published"
        assert " differ" not in vm.here(compare, check=False)
        with vm.start_ops("rollback", "--host", vm.host) as process:
            read_until(process, "trying the new web")
            refusals = vm.deploy(f"--tag={new}", code=1), vm.here("ops/restore x.tar 2>&1 || true")
            printed, _ = process.communicate(timeout=900)
        assert process.returncode == 0, printed
    for refused in refusals:
        assert re.fullmatch(
            rf"Refused: the deploy of {new} \(since \d\d:\d\d\) is under way here\."
            r" Try again when that has ended\.",
            last_line(refused),
        ), refused
    vm.wait_until_healthy(services)
    assert vm.version() == new
    assert visitors.failures == []
    assert visitors.versions == {old, new}
    assert vm.here("find versions -mindepth 1 -maxdepth 1 -name '.*'") == ""


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("{folder}/versions", "Stopped: the disk of {host} is full. Nothing was changed."),
        (
            "/var/lib/docker/tmp",
            "Stopped: the VM did not take the images, its disk is full. It serves as before.",
        ),
    ],
)
def test_a_full_disk_is_reported_and_changes_nothing(
    vm: ProductionVm, change: str, folder: str, sentence: str
) -> None:
    before = vm.running()
    with Visitors(vm) as visitors, vm.full(folder.format(folder=vm.folder)):
        printed = vm.deploy(WAIT, code=1)
    assert last_line(printed) == sentence.format(host=vm.host), printed
    assert vm.running() == before
    assert visitors.failures == []


@pytest.mark.long
def test_a_deploy_that_was_cut_short_four_times_is_whole_in_the_end(
    vm: ProductionVm, change: str
) -> None:
    before, services = vm.version(), set(vm.running())
    with Visitors(vm) as visitors:
        for step in ("building", "shipping"):
            with vm.start_ops("deploy", vm.host, WAIT) as process:
                read_until(process, step)
                process.kill()
            vm.wait_until_free()
            assert vm.version() == before
        with vm.start_ops("deploy", vm.host, WAIT) as process:
            read_until(process, "shipping")
            with vm.no_ssh():
                printed, _ = process.communicate(timeout=900)
        assert process.returncode == 1
        # In the words of ssh, which depend on the moment.
        why = r"Stopped: the VM did not take the images, .*\. It serves as before\."
        assert re.fullmatch(why, last_line(printed)), printed
        vm.wait_until_free()  # it, too, has found out that the connection is gone
        assert vm.version() == before
        with vm.start_ops("deploy", vm.host, WAIT) as process:
            read_until(process, "web-a, web-b: starting the successors")
            process.kill()
        vm.wait_until_free()  # it has gone on alone
        assert vm.version() == change
        vm.deploy(WAIT)
    vm.wait_until_healthy(services)
    assert vm.version() == change
    assert len(vm.here("docker compose ps --all --quiet").split()) == len(services) + 1
    assert visitors.failures == []
    assert visitors.versions == {before, change}
    assert vm.here("ls -A versions/*/.env 2> /dev/null || true") == ""


def test_files_that_cannot_be_replaced_are_reported(vm: ProductionVm) -> None:
    before = vm.running()
    vm.run("chown", "root:root", f"{vm.folder}/docs")
    try:
        printed = vm.deploy(f"--tag={vm.version()}", code=1)
    finally:
        vm.run("chown", "deploy:deploy", f"{vm.folder}/docs")
    assert "Permission denied" in last_line(printed)
    assert vm.running() == before
