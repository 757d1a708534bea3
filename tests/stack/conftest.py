import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .stack import Stack, wait_for


def files(stack: Stack) -> set[Path]:
    """Return the files and folders of a project, without what tools keep there for themselves."""
    caches = {"__pycache__", ".mypy_cache", ".ruff_cache"}
    return {path for path in stack.folder.rglob("*") if not caches.intersection(path.parts)}


@pytest.fixture
def restored(laptop: Stack) -> Iterator[None]:
    """Let a test change the project, and put all of it back afterwards."""
    before = {path: path.read_bytes() for path in files(laptop) if path.is_file()}
    there = files(laptop)
    yield
    for path in sorted(files(laptop) - there):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():  # not gone with its folder
            path.unlink()
    changed = [
        path
        for path, content in before.items()
        if not path.exists() or path.read_bytes() != content
    ]
    for path in changed:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            for made in (path, *path.parents):
                if made.is_relative_to(laptop.folder):
                    shutil.chown(made, 4242, 4242)
        path.write_bytes(before[path])  # in place: its owner stays
    # It knows the models that were there meanwhile.
    shutil.rmtree(laptop.folder / ".mypy_cache", ignore_errors=True)
    # Changed code is reloaded; what else there is runs in a container of its own.
    if any(path.name.startswith("compose.") for path in changed):
        laptop.up("--remove-orphans")
    wait_for("the proxy to reach web and Flower", laptop.reaches_all)
