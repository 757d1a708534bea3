"""What the benchmarks found: the tables in benchmarks/README.md are those of the data beside them."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tables import HERE, Result, Table, around, load

BENCHMARKS = sorted(
    set(HERE.glob("*.py")) - {HERE / f"{n}.py" for n in ("charts", "common", "tables")}
)
CHARTS = sorted(HERE.glob("results/*.svg"))
README = (HERE / "README.md").read_text(encoding="utf-8")
FRONT = (HERE.parent / "README.md").read_text(encoding="utf-8")
NAMES = sorted(path.stem for path in HERE.glob("results/*.json"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_explains_itself_and_is_in_the_readme(path: Path) -> None:
    helped = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True)
    assert "--save" in helped.stdout, helped.stderr
    assert f".venv/bin/python benchmarks/{path.name} " in README


@pytest.mark.parametrize("name", NAMES)
def test_a_table_shows_the_data(name: str) -> None:
    assert around(README, name)[1] == load(name).markdown()


@pytest.mark.parametrize("name", NAMES)
def test_data_are_as_they_would_be_saved(name: str) -> None:
    assert (HERE / f"results/{name}.json").read_text(encoding="utf-8") == load(name).json()


def test_every_table_has_data() -> None:
    assert sorted(re.findall("<!-- results of (.+) -->", README)) == NAMES
    _, results = README.split("\n## Results\n")
    for name in NAMES:
        shown = around(results, name)[1]
        results = results.replace(shown, "")
    assert "|" not in re.sub(r"`[^`]*`", "", results)


def test_saving_replaces_what_was_shown_and_nothing_else(tmp_path: Path) -> None:
    shutil.copy(HERE / "README.md", tmp_path)
    (tmp_path / "results").mkdir()
    found = Result(
        "today", [Table(("what", "s"), [("a", 1.5), ("a longer name", "2 \\ 3 é")]), "So."]
    )
    found.save("web", tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    before, shown, after = around(text, "web")
    assert (before, after) == around(README, "web")[::2]
    assert shown == (
        "today\n\n"
        "| what          |       s |\n"
        "| ------------- | ------: |\n"
        "| a             |     1.5 |\n"
        "| a longer name | 2 \\ 3 é |\n\n"
        "So."
    )
    assert load("web", tmp_path).markdown() == shown


def test_the_first_result_of_a_benchmark_is_at_the_end(tmp_path: Path) -> None:
    shutil.copy(HERE / "README.md", tmp_path)
    (tmp_path / "results").mkdir()
    Result("today", ["So."]).save("new", tmp_path)
    Result("later", ["So."]).save("new", tmp_path)
    end = "\n### new\n\n<!-- results of new -->\nlater\n\nSo.\n<!-- end of new -->\n"
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == README + end


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.stem)
def test_a_chart_is_drawn_from_the_data(chart: Path) -> None:
    text = chart.read_text(encoding="utf-8")
    sources, digest = re.search("<!-- of ([a-z -]+), ([0-9a-f]{64}) -->", text).groups()
    data = b"".join((HERE / f"results/{name}.json").read_bytes() for name in sources.split())
    drawn = hashlib.sha256(data).hexdigest() == digest
    assert drawn, f"{chart.name} is of other data: run benchmarks/charts.py"


def test_every_chart_is_shown() -> None:
    shown = re.findall(r"!\[[^]]+]\((?:benchmarks/)?results/(\S+)\.svg\)", README + FRONT)
    assert sorted(shown) == [chart.stem for chart in CHARTS]
