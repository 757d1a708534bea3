"""docs/systemd.md speaks of everything it should, and names no test that does not exist."""

import re
from pathlib import Path

import pytest

from .document import DOCUMENT, code, table

HERE = Path(__file__).parent
# What unit files of this kind are made of, beside what the units here have.
DIRECTIVES = set(
    """
    Restart= RestartSec= RestartSteps= StartLimitIntervalSec= StartLimitBurst= TimeoutStopSec=
    KillSignal= ExecStop= ExecReload= EnvironmentFile= User= WorkingDirectory= After= Requires=
    Wants= WantedBy= tmpfiles.d LimitNOFILE= MemoryMax= CPUWeight= WatchdogSec= PIDFile= enable
    disable journald
    """.split()
)
TEST = re.compile(r"`([\w./]+\.py)::(test_\w+)`")


def test_the_document_is_short() -> None:
    assert len(DOCUMENT.read_text("utf-8").splitlines()) <= 150


def test_every_test_it_names_exists() -> None:
    named = TEST.findall(DOCUMENT.read_text("utf-8"))
    assert len(named) > 20
    for file, test in named:
        path = DOCUMENT.parent.parent / "tests" / file
        assert path.is_file(), f"{file} does not exist"
        assert f"\ndef {test}(" in path.read_text("utf-8"), f"{file} has no {test}"


def test_every_row_names_a_test() -> None:
    for row in table("Unit files") + table("What comes back"):
        assert TEST.search(row[-1]), f"no test: {row[0]}"


def test_every_directive_has_its_row() -> None:
    written = {word for row in table("Unit files") for word in code(row[0])}
    units = (HERE / "machine" / "units").glob("*.service")
    used = {f"{key}=" for unit in units for key in re.findall(r"^(\w+)=", unit.read_text(), re.M)}
    assert (DIRECTIVES | used) - written - {"Description="} == set()


@pytest.mark.parametrize("row", table("What comes back"), ids=lambda row: row[0])
def test_an_outcome_is_one_of_three(row: list[str]) -> None:
    assert set(row[1:3]) <= {"back", "down", "untouched"}
