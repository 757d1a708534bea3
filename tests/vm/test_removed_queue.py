"""A version without a queue in which tasks wait is deployed to a VM."""

import re

import pytest

from tests.stack.stack import wait_for

from .test_journeys import WAIT
from .vm import ProductionVm


@pytest.mark.long
def test_a_deploy_moves_the_tasks_of_a_removed_queue(vm: ProductionVm) -> None:
    old = vm.version()
    vm.here("docker compose stop worker-crawl")
    vm.send("work", "stranded", 20, 0.1)
    before = vm.running()

    path = vm.stack.folder / "compose.yaml"
    lines = re.compile(r"^  worker-crawl:.*\n(    .*\n)*", re.MULTILINE)
    path.write_text(lines.sub("", path.read_text()))
    vm.stack.edit("config/settings.py", '"default", "crawl"', '"default"')
    new = vm.commit()
    printed = vm.deploy(WAIT, code=1)
    assert 'The queue "crawl" holds 20 tasks and is not in QUEUES' in printed
    assert f"Not taken live; {old} serves as before." in printed
    assert vm.running() == before

    printed = vm.deploy("--move-queue", "crawl=default", WAIT)
    assert "Moved 20 tasks from crawl to default." in printed
    assert vm.version() == new
    accepted = "count(accepted_at), count(*) FILTER (WHERE done = 1)"
    wait_for("all tasks", lambda: vm.count(accepted, "stranded") == [20, 20])
