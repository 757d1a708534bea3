"""A project that its owner changed and then upgraded."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.upgrading import change_as_owner, create, cruft, first_version, second_version

from .stack import LAPTOP, Stack


class Upgraded(Stack):
    """A stack of the template's first version, changed by its owner, upgraded to the second."""

    def render(self, parent: Path, **answers: str) -> Path:
        """Render with cruft, change, upgrade."""
        template = first_version(parent)
        project = create(template, parent / "projects", project_slug=self.slug, **answers)
        change_as_owner(project)
        second_version(template)
        cruft(project, "update", "--skip-apply-ask")
        return project


@pytest.fixture
def upgraded(tmp_path: Path) -> Iterator[Stack]:
    """The upgraded project; not started."""
    stack = Upgraded(tmp_path, LAPTOP)
    try:
        yield stack
    finally:
        stack.remove()


@pytest.mark.long
def test_an_upgraded_project_runs_and_its_tests_pass(upgraded: Stack) -> None:
    (steps,) = re.findall(r"^3\. (.*)$", (upgraded.folder / "docs/upgrade.md").read_text(), re.M)
    start, test = re.findall("`(.*?)`", steps)
    upgraded.shell(start)
    assert upgraded.containers()["web-a"].labels["version"] == "second"
    assert upgraded.result(upgraded.send("thumbnails", steps=1)) == "Done by thumbnails@mine."
    code = "from shop.tasks import send_receipt; print(send_receipt.delay(3).get(timeout=180))"
    assert upgraded.python(code) == "receipt 3"
    printed = upgraded.shell(test)
    assert re.search(r"\d+ passed", printed)
    assert not re.search(r"\d+ failed", printed)
