"""A project in the shape that cookiecutter-django renders, moved in as docs/moving-in.md says."""

import re
import shutil
import subprocess
from pathlib import Path

from tests.baking import TEMPLATE, bake
from tests.upgrading import commit, git

GUIDE = (TEMPLATE / "docs/moving-in.md").read_text(encoding="utf-8")
RENDER = "uvx cookiecutter <this repository> --output-dir ../rendered example=false\n"


def blocks(heading: str, language: str) -> list[str]:
    """Return the code that the guide gives below a heading, in turn."""
    _, found, rest = GUIDE.partition(f"\n## {heading}\n")
    assert found, f"the guide has no heading {heading!r}"
    return re.findall(rf"```{language}\n(.*?)```", rest.partition("\n## ")[0], re.DOTALL)


def hunks(diff: str) -> list[tuple[str, str]]:
    """Return the lines that go and those that come, for each place of a change."""
    return [
        tuple("".join(re.findall(rf"^[{sign}](.*\n)", hunk, re.MULTILINE)) for sign in "-+")
        for hunk in re.findall(r"(?:^[-+].*\n)+", diff, re.MULTILINE)
    ]


def change(folder: Path, diff: str) -> None:
    """Change the file that the first line names; what takes no line's place comes at the end."""
    name, _, rest = diff.partition("\n")
    path = folder / name.removeprefix("# ")
    text = path.read_text(encoding="utf-8")
    for old, new in hunks(rest):
        assert not old or text.count(old) == 1, f"{path} has {old!r} {text.count(old)} times"
        text = text.replace(old, new) if old else f"{text}\n{new}"
    path.write_text(text, encoding="utf-8")


def move_in(parent: Path, slug: str) -> Path:
    """Follow the guide, up to the point where everything is started; return the project's folder."""
    folder = parent / "shop"
    shutil.copytree(TEMPLATE / "tests/existing", folder)
    git(folder, "init")
    commit(folder, "Before")
    git(folder, "mv", ".dockerignore", ".dockerignore.old")
    bake(parent / "rendered", project_slug=slug, queues="mail", example="false")
    (copy,) = blocks("1. Copy what is the stack's", "sh")
    assert RENDER in copy
    subprocess.run(["bash", "-e", "-c", copy.replace(RENDER, "")], cwd=folder, check=True)
    (settings,) = blocks("2. Settings", "python")
    (folder / "config/settings/compose.py").write_text(settings, encoding="utf-8")
    for diff in re.findall(r"```diff\n(.*?)```", GUIDE, re.DOTALL):
        change(folder, diff)
    return folder
