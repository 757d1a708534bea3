"""docs/runbook.md as its page shows it: headings, paragraphs and commands, which is all that it has."""

import re
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent.parent / "docs/runbook.md"
LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")  # to other manuals, which are not on the site


def sections() -> list[dict[str, Any]]:
    """Return heading and parts of each section, first those before any heading; nothing without the file."""
    if not FILE.exists():
        return []
    _, _, text = FILE.read_text(encoding="utf-8").partition("\n")  # the title
    found = []
    for section in f"\n{text}".split("\n## "):
        heading, _, rest = section.partition("\n")
        found.append({"heading": heading, "parts": list(map(part, split(rest)))})
    return found


def split(text: str) -> list[str]:
    """Return the paragraphs and the blocks of commands."""
    pieces = re.split(r"^```(?:sh)?\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    found: list[str] = []
    for number, piece in enumerate(pieces):
        found += [f"$ {piece}"] if number % 2 else re.split(r"\n{2,}", piece)
    return [piece for piece in found if piece.strip()]


def part(piece: str) -> dict[str, Any]:
    """Return commands as they are, and of a paragraph each stretch of text and whether it is code."""
    if piece.startswith("$ "):
        return {"commands": piece.removeprefix("$ ").strip()}
    words = LINK.sub(r"\1", " ".join(piece.split())).split("`")
    return {"words": [(word, bool(number % 2)) for number, word in enumerate(words)]}
