"""A test that fails explains itself."""

import os
import subprocess
import sys
from pathlib import Path

from tests.baking import TEMPLATE

FAILING = """
import pytest
from tests import evidence

class Stack:
    def evidence(self):
        return {"ps.txt": "all is well", "web.log": "the last words"}

@pytest.fixture
def stack():
    yield Stack()

@pytest.fixture
def removed(stack):
    try:
        with evidence.step("start it", stack):
            raise RuntimeError("it does not start")
        yield
    finally:
        evidence.keep_before_removal()
        stack.evidence = lambda: {"ps.txt": ""}

def test_passes(stack):
    evidence.involve(stack)

@pytest.mark.parametrize("name", ["a/b c"])
def test_fails(stack, name):
    with evidence.step("stop the worker", stack) as notes:
        with evidence.step("not shown"):
            notes.append("exit 1")
    assert False

def test_cannot_begin(removed):
    pass
"""


def test_a_failed_test_says_where_its_steps_and_logs_are(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(FAILING)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.evidence", "-p", "no:cacheprovider"]
    printed = subprocess.run(
        [*command, "--numprocesses=1", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(TEMPLATE), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert "1 failed, 1 passed, 1 error" in printed
    assert "test-failures/test_it.py/test_fails_a_b_c_/ has all steps" in printed

    folder = tmp_path / "test-failures" / "test_it.py"
    found = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
    steps = {
        name: found.pop(f"{name}/steps.txt") for name in ("test_fails_a_b_c_", "test_cannot_begin")
    }
    assert found == {
        f"{name}/stack-0/{file}": text
        for name in steps
        for file, text in (("ps.txt", "all is well"), ("web.log", "the last words"))
    }
    assert steps["test_fails_a_b_c_"].splitlines()[-1].endswith("stop the worker [exit 1]")
    assert steps["test_cannot_begin"].splitlines()[-1].endswith("start it [RuntimeError]")
