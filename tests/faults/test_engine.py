"""The engine itself restarts or dies under load, with all that it runs; on a machine of its own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import Vm

from .helpers import Ledger, judge_after, ledger_stack, wait_until_healthy

BROKERS = ["redis", "rabbitmq"]
# The stack is told apart from here, so its engine listens here as well.
LISTEN = """
[Service]
ExecStart=
ExecStart=/usr/sbin/dockerd -H fd:// -H unix:///srv/engine/docker.sock
"""


class EngineVm(Vm):
    """A machine with an engine that runs the stack with the ledger."""

    def __init__(self, folder: Path) -> None:
        """Render a project into `folder`; nothing is built or started yet."""
        super().__init__(ledger_stack(folder, queues="crawl"))
        self.folder = folder / "engine"
        self.folder.mkdir()

    def install(self) -> None:
        """Boot, with the images of the stack on either broker; AssertionError when that fails."""
        self.stack.compose("build")
        images: set[str] = set()
        for broker in BROKERS:
            self.stack.set(BROKER=broker)
            images |= {*self.stack.compose("config", "--images").split()}
        self.build("--target=engine")
        drop_in = self.folder / "listen.conf"
        drop_in.write_text(LISTEN)
        unit = "/etc/systemd/system/docker.service.d"
        self.create(
            f"--volume={self.folder}:/srv/engine", f"--volume={drop_in}:{unit}/listen.conf:ro"
        )
        self.boot()
        # compose, here, names the folder that the engine, there, mounts.
        nginx = self.stack.folder / "nginx"
        shutil.copytree(nginx, self.folder / "nginx")
        self.run("mkdir", "--parents", str(nginx.parent))
        self.run("ln", "--symbolic", "/srv/engine/nginx", str(nginx))
        self.load(images)
        self.stack.use_engine(f"unix://{self.folder}/docker.sock")

    def start(self, broker: str) -> None:
        """Start the stack on a broker, without any data; AssertionError when it is not healthy."""
        self.stack.compose("down", "--volumes", "--timeout=5")
        self.stack.set(BROKER=broker)
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


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineVm]:
    """The machine; to make one costs more than what a test does with it."""
    vm = EngineVm(tmp_path_factory.mktemp("engine"))
    try:
        vm.install()
        yield vm
    finally:
        vm.remove()


# Not "redis", "rabbitmq": by these words tests/conftest.py would make a machine for each.
@pytest.mark.parametrize(
    "broker",
    ["redis", pytest.param("rabbitmq", marks=pytest.mark.long)],
    ids=["on redis", "on rabbitmq"],
)
def test_an_engine_that_restarts_or_dies_loses_no_task(vm: EngineVm, broker: str) -> None:
    vm.start(broker)
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
