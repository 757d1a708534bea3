"""
A pytest plugin: a failed test keeps its own steps and the state and logs of its stacks.

They are in test-failures/, in a folder for each test, and the failure prints where.
"""

import re
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pytest
from docker.models.containers import Container

LINES = 200  # of each log
SHOWN = 30  # steps in the report; all of them are in the folder


class Subject(Protocol):
    """A stack or a machine."""

    def evidence(self) -> dict[str, str]:
        """Return texts by the names of their files, none or empty ones when it was removed."""


folder = Path("test-failures")
test = "outside of a test"
steps: list[str] = []
subjects: list[Subject] = []
nested = threading.local()


def involve(subject: Subject) -> None:
    """Keep evidence of `subject` should the running test fail."""
    if subject not in subjects:
        subjects.append(subject)


@contextmanager
def step(what: str, subject: Subject | None = None) -> Iterator[list[str]]:
    """
    Record a step of the running test: when it began, how long it took, whether it raised.

    What is appended to the list that it yields is recorded, too. Steps within a step, and those of
    other threads, are not recorded.
    """
    if subject is not None:
        involve(subject)
    notes: list[str] = []
    if getattr(nested, "depth", 0) or threading.current_thread() is not threading.main_thread():
        yield notes
        return
    begun, moment = time.monotonic(), datetime.now(UTC)
    nested.depth = 1
    try:
        yield notes
    except BaseException as error:
        notes.append(type(error).__name__)
        raise
    finally:
        nested.depth = 0
        text = " ".join([what, *(f"[{note}]" for note in notes)])
        seconds = time.monotonic() - begun
        # In UTC, as the times of the logs.
        steps.append(f"{moment:%H:%M:%S.%f} {seconds:8.2f} s  {text}"[:500])


def keep() -> Path:
    """Write down what there is of the running test; return the folder."""
    name, *parameters = test.removeprefix("tests/").partition("[")
    own = folder / name.replace("::", "/")
    own = own.with_name(own.name + re.sub(r"[^\w.-]+", "_", "".join(parameters))[:120])
    own.mkdir(parents=True, exist_ok=True)
    (own / "steps.txt").write_text("\n".join([test, *steps, ""]))
    nested.depth = 1  # what is done here is no step of the test
    for number, subject in enumerate(subjects):
        try:
            files = subject.evidence()
        except Exception as error:  # whatever it is, the failure itself is what counts
            files = {"evidence.txt": f"There is none: {error!r}\n"}
        for name, text in files.items():
            if not text:  # it was removed since it was kept
                continue
            path = own / f"stack-{number}" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    nested.depth = 0
    return own


def keep_before_removal() -> None:
    """Keep it, when a stack is removed because something failed before its test began."""
    if sys.exc_info()[0] is not None:
        keep()


def of_containers(containers: Iterable[Container]) -> dict[str, str]:
    """Return ps.txt, how each container is, and the end of each one's log by its name."""
    files = {}
    rows = []
    for container in sorted(containers, key=lambda container: container.name):
        state = container.attrs["State"]
        times = f"started {state['StartedAt'][:23]} ended {state['FinishedAt'][:23]}"
        rows.append(
            f"{container.name}: {state['Status']} {state.get('Health', {}).get('Status', '')}"
            f" restarts {container.attrs['RestartCount']} exit code {state['ExitCode']} {times}"
        )
        for look in state.get("Health", {}).get("Log", [])[-2:]:
            rows.append(f"    {look['End'][:23]} exit code {look['ExitCode']} {look['Output']!r}")
        files[f"{container.name}.log"] = container.logs(timestamps=True, tail=LINES).decode(
            errors="replace"
        )
    return files | ({"ps.txt": "\n".join([*rows, ""])} if rows else {})


def pytest_configure(config: pytest.Config) -> None:
    """Find the folder for all of it, beside pytest.ini."""
    global folder
    folder = config.rootpath / "test-failures"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart(nodeid: str) -> None:
    """Begin the records of a test."""
    global test
    test = nodeid.partition("@")[0]  # what pytest-xdist adds
    steps.clear()
    subjects.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the evidence of a failure, and say where it is."""
    report = yield
    if report.failed:
        kept = keep().relative_to(folder.parent)
        text = "\n".join([f"{kept}/ has all steps, and the state and logs.", *steps[-SHOWN:]])
        report.sections.append((f"Evidence of {report.when}", text))
    return report
