"""One VM, on which each test leaves a site that is healthy, on port 80."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from .vm import ProductionVm


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProductionVm]:
    """A VM with sshd and Python, on which only ops/ lies."""
    vm = ProductionVm(tmp_path_factory.mktemp("vm"))
    try:
        vm.boot_bare()
        yield vm
    finally:
        vm.remove()


@dataclass
class Installed:
    """A VM after ops/install, before the first deploy."""

    vm: ProductionVm
    printed: str
    said_again: str  # by a second run
    daemon: str  # /etc/docker/daemon.json
    groups: list[str]  # of the user who deploys
    patience: str  # of the engine at a shutdown
    timers: list[str]  # their states


@pytest.fixture(scope="session")
def installed(bare: ProductionVm) -> Installed:
    """Install on the VM, twice, and look at once, whatever the tests do later."""
    bare.run(
        "sh", "-c", 'mkdir /etc/docker; echo \'{"log-level": "warn"}\' > /etc/docker/daemon.json'
    )
    timers = [f"{name}@srv-{bare.stack.slug}.timer" for name in ("alarm", "backup", "revive")]
    return Installed(
        vm=bare,
        printed=bare.install(),
        said_again=bare.install(),
        daemon=bare.run("cat", "/etc/docker/daemon.json"),
        groups=bare.run("id", "-nG", "deploy").split(),
        patience=bare.run("systemctl", "show", "--property=TimeoutStopUSec", "docker").strip(),
        timers=bare.run("systemctl", "is-active", *timers).split(),
    )


@pytest.fixture(scope="session")
def vm(installed: Installed) -> ProductionVm:
    """The VM with a site on it."""
    installed.vm.deploy(*installed.vm.first_settings())
    return installed.vm


@pytest.fixture
def change(vm: ProductionVm) -> str:
    """A change of the source that was never deployed, committed; the name of that version."""
    file = vm.stack.folder / "probe/static/changed.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(secrets.token_hex())
    return vm.commit()


@pytest.fixture
def two_versions(vm: ProductionVm, request: pytest.FixtureRequest) -> None:
    """At least two versions were live on the VM, so that one can go back."""
    if (
        len(set(re.findall(r"^\S+Z (\S+) live$", vm.here("cat versions/history"), re.MULTILINE)))
        < 2
    ):
        request.getfixturevalue("change")
        vm.deploy("--wait=400")
