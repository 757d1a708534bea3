"""stack/interruptible: a command that watchfiles stops always ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.baking import TEMPLATE
from tests.stack.stack import PATIENCE, wait_for

SCRIPT = TEMPLATE / "{{ cookiecutter.project_slug }}" / "stack" / "interruptible"
# It says which signal it gets, takes its time to end, and runs until then.
COMMAND = """
import signal, sys, time
def end(number, frame):
    print(signal.Signals(number).name, flush=True)
    time.sleep(0.5)
    print("ended", flush=True)
    sys.exit()
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(600)
"""


def start(*command: str, **options: Any) -> subprocess.Popen[str]:
    """Start the script with a command, as watchfiles does."""

    def listen() -> None:
        # Ignored by what runs in the background of a shell; no shell can trap it then.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen([SCRIPT, *command], preexec_fn=listen, text=True, **options)


def start_python(code: str) -> subprocess.Popen[str]:
    """Start the script with a Python program; return when that is ready."""
    process = start(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_gets_sigterm_and_is_waited_for(number: signal.Signals) -> None:
    with start_python(COMMAND) as process:
        process.send_signal(number)
        process.wait(timeout=PATIENCE)
        assert process.stdout.read() == "SIGTERM\nended\n"


def test_a_command_that_has_hardly_begun_ends_too() -> None:
    for moment in range(60):
        process = start("sleep", "600", stderr=subprocess.DEVNULL)
        try:
            time.sleep(moment / 5000)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=PATIENCE) != 0
        finally:
            process.kill()


def test_it_kills_the_command_when_it_is_killed() -> None:
    with start_python(
        f"import os; print('ready', flush=True); print(os.getpid(), flush=True)\n{COMMAND}"
    ) as process:
        child = int(process.stdout.readline())
        process.kill()
        wait_for("its end", lambda: ended(child))


def ended(process: int) -> bool:
    """Return whether a process has ended; its parent need not know yet."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


def test_it_has_the_exit_code_of_a_command_that_ends_by_itself() -> None:
    assert subprocess.run([SCRIPT, "sh", "-c", "exit 3"]).returncode == 3
    assert os.access(SCRIPT, os.X_OK)
