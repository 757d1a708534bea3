"""One VM, on which the tests go in the order of their files: each leaves a site that is healthy."""

from collections.abc import Iterator

import pytest

from tests.systemd.machine import docker

from .vm import ProductionVm


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProductionVm]:
    """A VM with sshd and Python, on which only ops/ lies."""
    vm = ProductionVm(tmp_path_factory.mktemp("vm"))
    try:
        vm.build("--target=bare")
        vm.create()
        docker("cp", f"{vm.stack.folder}/ops", f"{vm.name}:/root/ops")
        vm.boot()
        yield vm
    finally:
        vm.remove()


@pytest.fixture(scope="session")
def installed(bare: ProductionVm) -> tuple[ProductionVm, str]:
    """The VM after ops/install, and what that said."""
    bare.run(
        "sh", "-c", 'mkdir /etc/docker; echo \'{"log-level": "warn"}\' > /etc/docker/daemon.json'
    )
    return bare, bare.install()


@pytest.fixture(scope="session")
def vm(installed: tuple[ProductionVm, str]) -> ProductionVm:
    """The VM with a site on it."""
    vm, _ = installed
    vm.deploy(*vm.first_settings())
    return vm
