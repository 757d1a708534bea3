from collections.abc import Iterator

import pytest

from .machine import Machine


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that runs four units and the stack; a test may leave some of them stopped."""
    machine = Machine(tmp_path_factory.mktemp("systemd"))
    try:
        machine.build()
        machine.install()
        machine.start()
        yield machine
    finally:
        machine.remove()
