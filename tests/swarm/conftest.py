"""Three VMs: one that has a site with data, and two that ops/install --swarm has prepared."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from .swarm import Swarm


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """The first one serves alone."""
    swarm = Swarm(tmp_path_factory.mktemp("swarm"))
    try:
        swarm.boot_bare()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda vm: vm.install("--swarm"), swarm.vms))
        swarm.deploy(*swarm.first_settings())
        yield swarm
    finally:
        swarm.remove()


@pytest.fixture(scope="session")
def swarm(three: Swarm) -> Swarm:
    """All three serve: the proxy and the data on the first, the rest where there is room."""
    three.before = three.leave_data()
    three.make()
    three.printed = three.move()
    return three
