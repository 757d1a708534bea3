"""docs/systemd.md, as tests read it."""

import re

from tests.baking import TEMPLATE

DOCUMENT = TEMPLATE / "docs" / "systemd.md"


def table(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading, without its first two lines."""
    _, found, rest = DOCUMENT.read_text("utf-8").partition(f"\n## {heading}\n")
    assert found, f"{DOCUMENT.name} has no heading {heading!r}"
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def code(cell: str) -> list[str]:
    """Return what is in `backticks`."""
    return re.findall(r"`([^`]+)`", cell)
