"""A clone with core.autocrlf, git's setting on Windows, still has scripts that Linux can run."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.baking import TEMPLATE

OWN = ["-c", "safe.directory=*", "-c", "user.name=owner", "-c", "user.email=owner@localhost"]


def git(folder: Path, *arguments: str) -> None:
    """Run git in a folder with the setting of Windows."""
    subprocess.run(["git", "-c", "core.autocrlf=true", *OWN, *arguments], cwd=folder, check=True)


def with_carriage_returns(folder: Path) -> list[str]:
    """Return the text files of a clone that have a line ending of Windows."""
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.parts
        if b"\r\n" in (content := path.read_bytes()) and b"\0" not in content
    ]


@pytest.mark.parametrize("what", ["template", "project"])
def test_a_clone_has_the_line_endings_of_linux(defaults: Path, tmp_path: Path, what: str) -> None:
    listed = ["git", *OWN, "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    if what == "template":
        names = subprocess.check_output(listed, cwd=TEMPLATE, text=True).split("\0")
        for name in filter(None, names):
            (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TEMPLATE / name, tmp_path / "a" / name)
    else:
        shutil.copytree(defaults, tmp_path / "a")
    git(tmp_path / "a", "init", "--quiet")
    git(tmp_path / "a", "add", "--all")
    git(tmp_path / "a", "commit", "--quiet", "--message=first")
    git(tmp_path, "clone", "--quiet", "a", "b")
    assert (tmp_path / "b/.gitattributes").exists()
    assert with_carriage_returns(tmp_path / "b") == []
