"""The engine itself restarts or dies under load, with all that it runs; on a machine of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import Vm

from .helpers import Ledger, judge_after, ledger_stack, wait_until_healthy

# The stack is told apart from here, so its engine listens here as well.
LISTEN = """
[Service]
ExecStart=
ExecStart=/usr/sbin/dockerd -H fd:// -H unix:///srv/engine/docker.sock
"""


class EngineVm(Vm):
    """A machine with an engine that runs the stack with the ledger."""

    def __init__(self, folder: Path, broker: str) -> None:
        """Render a project into `folder`; nothing is built or started yet."""
        super().__init__(ledger_stack(folder, broker=broker, queues="crawl"))
        self.folder = folder / "engine"
        self.folder.mkdir()

    def install(self) -> None:
        """Boot, and start the stack; AssertionError when it does not get healthy."""
        self.stack.compose("build")
        images = self.stack.compose("config", "--images").split()
        self.build("--target=engine")
        drop_in = self.folder / "listen.conf"
        drop_in.write_text(LISTEN)
        unit = "/etc/systemd/system/docker.service.d"
        self.create(
            f"--volume={self.folder}:/srv/engine", f"--volume={drop_in}:{unit}/listen.conf:ro"
        )
        self.boot()
        self.load(images)
        self.stack.use_engine(f"unix://{self.folder}/docker.sock")
        self.stack.up("--no-build")

    def restart_engine(self) -> None:
        """Restart the engine, which stops its containers first; return when all are healthy."""
        self.run("systemctl", "restart", "docker", timeout=300)
        wait_until_healthy(self.stack)

    def crash_engine(self) -> None:
        """Kill the engine, and its containers with it; return when all are healthy."""
        self.kill_engine()
        wait_until_healthy(self.stack)

    def remove(self) -> None:
        """Remove the machine, and the images it was made from."""
        self.stack.use_engine("")
        super().remove()


@pytest.fixture(params=["redis", "rabbitmq"])
def vm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The machine, with one broker after the other."""
    vm = EngineVm(tmp_path_factory.mktemp("engine"), broker=request.param)
    try:
        vm.install()
        yield vm
    finally:
        vm.remove()


def test_an_engine_that_restarts_or_dies_loses_no_task(vm: EngineVm) -> None:
    ledger = Ledger(vm.stack)
    verdict = judge_after(
        ledger,
        "engine",
        240,
        lambda stack: vm.restart_engine(),
        lambda stack: vm.crash_engine(),
        seconds=0.5,
    )
    assert verdict.lost == 0
