"""The VM is switched off, by its owner or by nobody: what was enabled comes back, tasks included."""

from tests.stack.stack import wait_for

from .load import Visitors
from .vm import TIME_LIMIT, ProductionVm

SECONDS = TIME_LIMIT / 2  # of a task
TASKS = 4  # twice as many as the worker runs at a time


def start_tasks(vm: ProductionVm, key: str) -> None:
    """Send tasks and wait until the worker is in the middle of two."""
    vm.send("overrun", key, TASKS, SECONDS)
    wait_for("two run", lambda: vm.count("sum(started) - sum(done)", key) == [2])


def wait_for_tasks(vm: ProductionVm, key: str) -> None:
    """Wait until all are done, after a time in which each could be done anew."""
    done = "count(*) FILTER (WHERE done > 0)"
    wait_for("all tasks done", lambda: vm.count(done, key) == [TASKS])


def test_a_reboot_lets_running_tasks_end_and_brings_back_all_but_what_was_disabled(
    vm: ProductionVm,
) -> None:
    services, version = set(vm.running()), vm.version()
    vm.here("docker compose rm --stop --force flower")
    vm.here("docker compose stop web-b beat")  # which disables nothing
    start_tasks(vm, "reboot")
    vm.reboot()
    vm.wait_until_healthy(services - {"flower"})
    assert vm.version() == version
    assert vm.get("/readyz").status_code == 200
    wait_for_tasks(vm, "reboot")
    # None was begun twice: the worker could end what it had begun, and write it down.
    assert vm.count("max(started), max(done)", "reboot") == [1, 1]
    with Visitors(vm) as visitors:
        vm.here("docker compose up --detach flower")
        vm.wait_until_healthy(services)
    assert visitors.failures == []


def test_a_power_cut_loses_no_task(vm: ProductionVm) -> None:
    services, version = set(vm.running()), vm.version()
    start_tasks(vm, "cut")
    vm.cut_power()
    vm.wait_until_healthy(services)
    assert vm.version() == version
    wait_for_tasks(vm, "cut")
    assert vm.count("sum(started)", "cut")[0] > TASKS  # some of them were begun anew
