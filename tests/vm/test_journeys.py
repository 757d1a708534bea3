"""From a bare VM to a site, and to its next version."""

import errno
import json
import re
import shlex
import shutil
import stat
import textwrap

import pytest

from tests.stack.stack import wait_for

from .conftest import Installed
from .load import QUEUES, Load
from .vm import ProductionVm

WAIT = "--wait=400"  # seconds for a container; three groups of tests share two cores


def test_install_merges_what_is_there_and_changes_nothing_twice(installed: Installed) -> None:
    todo = re.findall(r"^  - (.*)$", installed.printed, re.MULTILINE)
    done = re.findall(r"^done: .*$", installed.printed, re.MULTILINE)
    assert [f"done: {what}" for what in todo] == done
    assert "the ports 80 and 443" in installed.printed
    assert '"log-level": "warn"' in installed.daemon
    assert '"live-restore": true' in installed.daemon
    assert "docker" in installed.groups
    assert installed.patience == "TimeoutStopUSec=7min"  # more than TASK_TIME_LIMIT and a minute
    assert installed.timers == ["active"] * 3
    assert re.findall(r"^(?:done|To do).*$", installed.said_again, re.MULTILINE) == []


def test_the_first_deploy_gives_a_site_with_secrets_of_its_own(vm: ProductionVm) -> None:
    assert vm.get("/readyz").status_code == 200
    assert vm.get("/admin/login/").status_code == 200
    settings, laptop = vm.settings(), vm.stack.settings
    names = [name for name in settings if name.endswith(("_PASSWORD", "_KEY"))]
    assert len(names) == 6
    for name in names:
        assert len(settings[name]) >= 40
        assert settings[name] != laptop[name]
    assert settings["COMPOSE_FILE"] == "compose.yaml:compose.production.yaml"
    assert stat.S_IMODE(int(vm.here("stat --format=%a .env"), 8)) == 0o600
    assert vm.get("/flower/").status_code == 401
    auth = (settings["FLOWER_USER"], settings["FLOWER_PASSWORD"])
    assert vm.get("/flower/workers", auth=auth).status_code == 200
    assert vm.version() in vm.ops("status", "--host", vm.host)
    assert "ready." in vm.ops("logs", "--host", vm.host, "--no-follow", "worker-crawl")


def test_the_manual_keeps_containers_from_the_metadata_service(vm: ProductionVm) -> None:
    def reached() -> str:
        connect = "import socket; print(socket.socket().connect_ex(('169.254.169.254', 80)))"
        limited = (
            f"timeout 3 docker compose exec -T worker-default python -c {shlex.quote(connect)}"
        )
        return vm.here(limited, check=False)

    refused = str(errno.ECONNREFUSED)
    assert reached().strip() != refused
    manual = (vm.stack.folder / "docs/security.md").read_text()
    (commands,) = re.findall(r"(?s)```sh\n(.*?)```", manual)
    containers = vm.running()
    vm.run("sh", "-c", textwrap.dedent(commands))
    assert reached().strip() == refused
    assert vm.running() == containers


def test_the_journal_has_the_lines_and_so_has_ops_logs(vm: ProductionVm) -> None:
    start = "docker compose up --detach --wait --no-deps worker-crawl"
    try:
        vm.here(f"echo LOG_DRIVER=journald >> .env && {start}")
        code = "from stack.tasks import sample; print(sample.apply_async(kwargs={'steps': 1}, queue='crawl').id)"
        task = vm.python(code)
        # The first command of the manual.
        search = vm.stack.manual("logs.md", "Logs elsewhere")[0].replace("default", "crawl").split()
        wait_for("the line", lambda: task in vm.run(*search))
        (line,) = (json.loads(line) for line in vm.run(*search).splitlines() if task in line)
        assert (line["outcome"], line["queue"], line["request_id"]) == ("succeeded", "crawl", task)
        assert task in vm.ops("logs", "--host", vm.host, "--no-follow", "worker-crawl")
    finally:
        vm.here(f"sed -i /^LOG_DRIVER=/d .env && {start}")


def test_a_deploy_under_load_fails_no_request_and_loses_no_task(vm: ProductionVm) -> None:
    before, proxy = vm.version(), vm.running()["proxy"]
    page = vm.get("/admin/login/").text
    old_file = re.search(r'href="(/static/admin/css/login\.[0-9a-f]{12}\.css)"', page)[1]
    # A change of the source, of which one file has another hash from now on.
    own = vm.stack.folder / "probe" / "static" / "admin" / "css"
    own.mkdir(parents=True)
    (own / "login.css").write_text("body { color: black }\n")
    vm.stack.edit("config/settings.py", '    "probe",\n', "")
    vm.stack.edit(
        "config/settings.py", "INSTALLED_APPS = [\n", 'INSTALLED_APPS = [\n    "probe",\n'
    )
    vm.stack.edit("nginx/pages.conf", r'return 200 "ok\n"', r'return 200 "changed\n"')
    with Load(vm) as load:
        printed = vm.deploy(WAIT)
    assert load.failures == []
    for service in (*(f"worker-{queue}" for queue in QUEUES), "web-a", "web-b"):
        least, most = load.least_and_most(service)
        assert least >= 1, service
        assert most <= 2, service
    assert load.least_and_most("beat")[1] == 1
    code = (
        "from config.celery import app;"
        f'print([app.AsyncResult(task).get(timeout=180)[:4] for task in {load.tasks!r}].count("Done"))'
    )
    assert int(vm.python(code)) == len(load.tasks) > 0
    # The layers that the VM has stay at home, and what holds the port stays as it is.
    assert float(re.search(r"shipped ([\d.]+) MB", printed)[1]) < 5
    assert vm.version() != before
    assert vm.running()["proxy"] == proxy
    assert vm.get("/proxy-alive").text == "changed\n"
    new_file = re.search(r'href="(/static/admin/css/login\.\S+?)"', vm.get("/admin/login/").text)[1]
    assert new_file != old_file
    assert vm.get(new_file).text == "body { color: black }\n"
    assert vm.get(old_file).status_code == 200
    assert vm.get("/static/admin/css/login.css").text == "body { color: black }\n"


def test_a_deploy_with_pull_brings_what_is_newer_here_and_cannot_be_pulled_there(
    vm: ProductionVm,
) -> None:
    container = f"{vm.stack.slug}-cache-1"
    look = ["docker", "inspect", "--format={{.Image}} {{.Config.Image}}", container]
    before, image = vm.run(*look).split()
    # Another one of the same name there, which a registry stands for that has what is here.
    vm.run("docker", "commit", container, image)
    vm.here("docker compose up --detach --wait --no-deps cache")
    assert vm.run(*look).split()[0] != before
    program = vm.bin / "docker"
    program.write_text(f'#!/bin/sh\n[ "$1" = pull ] || exec {shutil.which("docker")} "$@"\n')
    program.chmod(0o755)
    try:
        printed = vm.deploy(f"--tag={vm.version()}", "--pull", WAIT)
    finally:
        program.unlink()
    assert re.search(r"shipping (.*)$", printed, re.MULTILINE)[1] == image
    assert vm.run(*look).split()[0] == before
    assert vm.get("/readyz").status_code == 200


@pytest.mark.long
def test_a_deploy_starts_prometheus_and_refuses_rules_that_it_would_not_load(
    vm: ProductionVm,
) -> None:
    printed = vm.deploy("--set=COMPOSE_PROFILES=monitoring", f"--tag={vm.version()}", WAIT)
    assert re.search(r"shipping (.*)$", printed, re.MULTILINE)[1].startswith("prom/prometheus:")
    ask = "docker compose exec -T monitoring wget -q -O - http://127.0.0.1:9090/monitoring/api/v1/"
    vm.here(f"until {ask}query?query=stack_up | grep -q broker; do sleep 2; done")
    assert vm.get("/monitoring/").headers["Location"] == "/status/monitoring/"
    assert "monitoring " in vm.ops("status", "--host", vm.host)
    before, container = vm.version(), vm.running()["monitoring"]
    rules = "monitoring/alerts.yaml"
    vm.stack.edit(rules, "expr: absent(stack_up)", "expr: absent(stack_up")
    printed = vm.deploy(WAIT, code=1)
    assert "unclosed left parenthesis" in printed
    assert f"{before} serves as before" in printed
    # A change of the rules is loaded into the container that runs.
    vm.stack.edit(rules, "expr: absent(stack_up", "expr: absent(stack_up) or vector(0) == 1")
    vm.deploy(WAIT)
    vm.here(f"until {ask}rules | grep -q 'vector(0) == 1'; do sleep 2; done", timeout=90)
    assert vm.running()["monitoring"] == container
    # So that it does not disturb the tests that follow.
    vm.stack.edit(rules, "expr: absent(stack_up) or vector(0) == 1", "expr: absent(stack_up)")
    vm.deploy("--set=COMPOSE_PROFILES=none", WAIT)
    vm.here("docker compose rm --stop --force monitoring")
    assert "monitoring" not in vm.running()


@pytest.mark.long
def test_secrets_are_replaced_from_elsewhere(vm: ProductionVm) -> None:
    names = ("FLOWER_PASSWORD", "CACHE_PASSWORD")
    before, containers = vm.settings(), vm.running()
    assert vm.get("/flower/", auth=("admin", before[names[0]])).status_code == 200
    printed = vm.ops("rotate", "--host", vm.host, *names)
    assert printed.rstrip().endswith(f"Replaced: {', '.join(names)}.")
    after = vm.settings()
    assert {name for name in before if before[name] != after[name]} == {*names}
    assert vm.get("/flower/", auth=("admin", before[names[0]])).status_code == 401
    assert vm.get("/flower/", auth=("admin", after[names[0]])).status_code == 200
    assert vm.get("/readyz").json()["cache"] == "ok"
    assert vm.here("stat --format=%a .env").strip() == "600"
    replaced = {name for name in containers if vm.running()[name] != containers[name]}
    assert replaced.isdisjoint({"proxy", "db", "broker", "cache"})
    assert {"web-a", "web-b", "flower"} < replaced
