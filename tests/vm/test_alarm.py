"""What ops/alarm finds on a VM, run by its unit, and the pings of the queues."""

import shlex
from collections.abc import Iterator

import pytest

from tests.stack.alarm import AGE, Receivers
from tests.stack.stack import wait_for

from .vm import ProductionVm

pytestmark = pytest.mark.long


class Watched:
    """The VM, with receivers of its mails and pings; the clock of ops/alarm is the test's."""

    def __init__(self, vm: ProductionVm, receivers: Receivers) -> None:
        """Stop the timer, so that it runs only when the test says so."""
        self.vm, self.receivers = vm, receivers
        self.unit = f"alarm@srv-{vm.stack.slug}"
        vm.run("systemctl", "stop", f"{self.unit}.timer")
        self.forget()

    def forget(self) -> None:
        """Let it begin with nothing known, whatever the test before has left."""
        self.vm.here("rm -f .alarm.json")

    def look(self, seconds: float = 0) -> None:
        """Let it look, some seconds later."""
        if seconds:
            self.vm.here(f"python3 -c {shlex.quote(AGE.format(seconds=seconds))}")
        self.vm.run("systemctl", "reset-failed")  # five starts within ten seconds are too many
        self.vm.run("systemctl", "start", f"{self.unit}.service")

    def mails(self) -> list[str]:
        """Return what the subjects say after the name of the VM."""
        return [subject.partition(": ")[2] for subject, _ in self.receivers.mails()]

    def last_ping(self) -> tuple[str, str]:
        """Return what the VM said last."""
        return self.receivers.pings(f"{self.vm.stack.slug}-vm-")[-1]


@pytest.fixture
def watched(pinging: Watched) -> Watched:
    """The same, with nothing known."""
    pinging.forget()
    return pinging


@pytest.fixture(scope="module")
def pinging(vm: ProductionVm) -> Iterator[Watched]:
    """The VM with the two lines in .env, and nothing wrong."""
    receivers = Receivers()
    vm.here("cp .env .env.before")
    try:
        lines = "".join(f"{name}={value}\n" for name, value in receivers.settings().items())
        vm.here(f"printf %s {shlex.quote(lines)} >> .env")
        vm.here("docker compose up --detach --wait")
        watched = Watched(vm, receivers)
        watched.look()
        yield watched
        vm.here("mv .env.before .env && docker compose up --detach --wait")
        vm.run("systemctl", "start", f"{watched.unit}.timer")
    finally:
        receivers.remove()


def test_each_queue_and_the_vm_ping_a_check_of_their_own(watched: Watched) -> None:
    pings, slug = watched.receivers.pings, watched.vm.stack.slug
    watched.look()
    wait_for("both queues", lambda: pings(f"{slug}-default?") and pings(f"{slug}-crawl?"))
    path, body = watched.last_ping()
    assert path.endswith("?create=1")
    assert body == ""
    assert watched.vm.here("stat --format='%U %a' .alarm.json").strip() == "deploy 600"
    worker = "docker compose logs worker-default worker-crawl beat"
    assert "the-ping-key" not in watched.vm.here(worker)
    # A dead worker silences one check, and no other one.
    watched.vm.here("docker compose stop worker-crawl")
    try:
        default, crawl = len(pings(f"{slug}-default?")), len(pings(f"{slug}-crawl?"))
        wait_for("the other one", lambda: len(pings(f"{slug}-default?")) > default + 1)
        assert len(pings(f"{slug}-crawl?")) == crawl
    finally:
        watched.vm.here("docker compose start worker-crawl")


def test_an_engine_that_is_gone_is_mailed(watched: Watched) -> None:
    before = len(watched.mails())
    watched.vm.run("systemctl", "stop", "docker.socket", "docker")
    try:
        watched.look()
        watched.look(120)
        assert watched.mails()[before:] == ["PROBLEM: engine-gone"]
        assert "/fail?create=1" in watched.last_ping()[0]
        assert watched.last_ping()[1].startswith("engine-gone: Docker does not answer")
    finally:
        watched.vm.run("systemctl", "start", "docker.socket", "docker")
    watched.look()
    watched.look(300)
    assert watched.mails()[before:] == ["PROBLEM: engine-gone", "over: engine-gone"]
    assert "/fail" not in watched.last_ping()[0]


def test_an_engine_that_hangs_is_mailed(watched: Watched) -> None:
    before = len(watched.mails())
    watched.vm.run("pkill", "-STOP", "--exact", "dockerd")
    try:
        watched.look()
        watched.look(120)
        assert watched.mails()[before:] == ["PROBLEM: engine-gone"]
    finally:
        watched.vm.run("pkill", "-CONT", "--exact", "dockerd")
    watched.look()
    watched.look(300)
    assert watched.mails()[before + 1 :] == ["over: engine-gone"]


def test_a_full_disk_is_mailed(watched: Watched) -> None:
    before, folder = len(watched.mails()), f"{watched.vm.folder}/backups"
    watched.vm.here("mkdir -p backups")
    with watched.vm.full(folder):
        watched.vm.here("head --bytes=57k /dev/zero > backups/file")
        watched.look()
        watched.look(300)
        assert watched.mails()[before:] == [f"PROBLEM: disk-full {folder}"]
    watched.look()
    watched.look(300)
    assert watched.mails()[before + 1 :] == [f"over: disk-full {folder}"]
