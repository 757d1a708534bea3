"""What the scripts share: progress, commands, and failures that name the way out."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "{{ cookiecutter.project_slug }}"
VENV = ROOT / ".venv"


class StepFailed(Exception):
    """A step cannot go on. The text says which, why, and the way out."""


def report(text: str) -> None:
    """Print one line of progress at once, also into a pipe."""
    print(text, flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Announce work that takes a while, and say afterwards how many seconds it took."""
    report(f"  {text} ...")
    started = time.monotonic()
    yield
    report(f"    done in {time.monotonic() - started:.1f} s")


def tail(text: str, lines: int = 15) -> str:
    """The end of a log, set off from our own lines."""
    return "".join(f"    | {line}\n" for line in text.splitlines()[-lines:])


def run(
    *command: object, way_out: str, timeout: float = 900, env: dict[str, str] | None = None
) -> str:
    """Run a command quietly and return what it printed.

    Args:
        command: the program and its arguments.
        way_out: what a person does when it fails, as the end of a sentence.
        timeout: seconds after which it counts as failed.
        env: variables beside those of this process.

    Raises:
        StepFailed: with the end of the output.
    """
    words = [str(word) for word in command]
    name = " ".join(words[:4])
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            env=os.environ | (env or {}),
        )
    except FileNotFoundError:
        raise StepFailed(f"{words[0]} is not installed: {way_out}.") from None
    except subprocess.TimeoutExpired:
        raise StepFailed(f"'{name} ...' took over {timeout:.0f} s: {way_out}.") from None
    if done.returncode:
        raise StepFailed(f"'{name} ...' failed: {way_out}.\n{tail(done.stdout)}")
    return done.stdout


def output(*command: str, timeout: float = 30) -> str | None:
    """Return what a command prints on stdout; None when it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def guarded(main: Callable[[], int | None]) -> None:
    """Call main and end the process; a failed step gives exit code 1 and no traceback."""
    try:
        sys.exit(main())
    except StepFailed as failure:
        sys.exit(f"\n{Path(sys.argv[0]).name}: {failure}".rstrip())
    except KeyboardInterrupt:
        sys.exit(130)


def python_tool(name: str) -> str:
    """Path of a command in .venv/, such as pytest."""
    return str(VENV / ("Scripts" if os.name == "nt" else "bin") / name)
