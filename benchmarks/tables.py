"""Results as tables: in Markdown for a README, and as data in results/ for whoever draws or compares."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- results of {} -->\n", "\n<!-- end of {} -->"


@dataclass(frozen=True)
class Table:
    """A table whose cells are as they are shown; every column but the first is aligned to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        cells = [[str(cell) for cell in row] for row in (self.head, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            " | ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        rule = " | ".join("-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths))
        return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


@dataclass(frozen=True)
class Result:
    """What a benchmark found: tables and notes, below a heading that says when, where and how."""

    heading: str
    parts: Sequence[Table | str]

    def markdown(self) -> str:
        """Return the heading and the parts in Markdown."""
        texts = [part if isinstance(part, str) else part.markdown() for part in self.parts]
        return "\n\n".join((self.heading, *texts))

    def json(self) -> str:
        """Return the result as JSON with a line for each row."""
        parts = ",\n  ".join(map(json_of, self.parts))
        return f'{{\n "heading": {dumps(self.heading)},\n "parts": [\n  {parts}\n ]\n}}\n'

    def save(self, name: str, folder: Path = HERE) -> None:
        """Write results/`name`.json, and the same in README.md: where it was, or at the end."""
        readme = folder / "README.md"
        text = readme.read_text("utf-8")
        if BEGIN.format(name) not in text:
            text += f"\n### {name}\n\n{BEGIN.format(name)}{END.format(name)}\n"
        before, _, after = around(text, name)
        (folder / "results" / f"{name}.json").write_text(self.json(), "utf-8")
        readme.write_text(f"{before}{self.markdown()}{after}", "utf-8")


def json_of(part: Table | str) -> str:
    """Return a part of a result as JSON."""
    if isinstance(part, str):
        return dumps(part)
    rows = ",\n    ".join(dumps([str(cell) for cell in row]) for row in part.rows)
    return f'{{\n   "head": {dumps(list(part.head))},\n   "rows": [\n    {rows}\n   ]\n  }}'


def dumps(value: object) -> str:
    """Return JSON on one line, with the characters as they are."""
    return json.dumps(value, ensure_ascii=False)


def load(name: str, folder: Path = HERE) -> Result:
    """Return what was saved under this name."""
    data = json.loads((folder / "results" / f"{name}.json").read_text("utf-8"))
    parts = [part if isinstance(part, str) else Table(**part) for part in data["parts"]]
    return Result(data["heading"], parts)


def around(text: str, name: str) -> tuple[str, str, str]:
    """Split a text at the markers of a name, before and after what they enclose."""
    begin, end = BEGIN.format(name), END.format(name)
    before, _, rest = text.partition(begin)
    shown, _, after = rest.partition(end)
    return before + begin, shown, end + after
