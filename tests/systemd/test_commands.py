"""Every command of the daily table is run, on both sides, and does what its row says."""

import re
import subprocess
from functools import partial

from tests.stack.stack import PATIENCE

from .document import code, table
from .machine import Machine, both

# What the row does to the worker's main process; every other row leaves it alone.
EFFECTS = {
    "stop": "down",
    "start": "back",
    "restart": "back",
    "take over a changed .env": "back",
    "not at boot": "down",
    "at boot": "back",
}


def run(machine: Machine, command: str) -> None:
    """Run a command as typed; one that follows a log for two seconds only."""
    if re.search(r" -f( |$)", command):
        command = f"timeout 2 {command} || [ $? = 124 ]"
    try:
        machine.run("bash", "-c", command)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        raise AssertionError(f"{command}: {error}") from None


def test_the_daily_commands_do_what_they_say(machine: Machine) -> None:
    before = machine.start()
    rows = table("Every day")
    assert set(EFFECTS) <= {row[0] for row in rows}
    for what, systemd, stack in rows:
        if "changed .env" in what:
            machine.run("bash", "-c", "echo CHANGED=$(date) >> .env")
        (unit,), (service,) = code(systemd), code(stack)
        both(partial(run, machine, unit), partial(run, machine, service))
        expected = EFFECTS.get(what)
        seconds = PATIENCE if expected == "back" else 0
        found = machine.outcomes(before, seconds, roles=["worker"])
        alike = dict.fromkeys(found, expected or "untouched")
        assert found == alike, what
        before = machine.look() if expected != "down" else before
