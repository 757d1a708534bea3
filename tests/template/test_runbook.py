"""docs/runbook.md: a section for each problem, whose commands a test runs."""

import ast
import re
from collections import Counter
from pathlib import Path

from tests.runbook import sections

# What ops/alarm finds on a VM. The others are those of stack/problems.py.
OF_THE_VM = {
    *("site-down", "engine-gone", "container-unhealthy", "container-restarts"),
    *("backup-old", "disk-full", "certificate-expires"),
}
TESTS = Path(__file__).parent.parent


def followed() -> Counter[str]:
    """Return how often tests run the commands of each section: follow(…, "section")."""
    calls = [
        node
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "follow"
    ]
    return Counter(ast.literal_eval(call.args[-1]) for call in calls)


def test_each_problem_has_a_section(defaults: Path) -> None:
    code = (defaults / "stack/problems.py").read_text(encoding="utf-8")
    named = set(re.findall(r'Problem\(\s*"([\w-]+)"', code))
    assert len(named) > 10
    assert named | OF_THE_VM <= sections(defaults).keys()


def test_each_command_runs_in_exactly_one_test(defaults: Path) -> None:
    found = sections(defaults)
    assert followed() == Counter(found.keys())
    text = (defaults / "docs/runbook.md").read_text(encoding="utf-8")
    assert text.count("```sh\n") == len(found) == len([*filter(None, found.values())])


def test_it_is_one_page(defaults: Path) -> None:
    assert len((defaults / "docs/runbook.md").read_text(encoding="utf-8").splitlines()) <= 310
