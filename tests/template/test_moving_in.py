"""docs/moving-in.md without an engine; tests/stack/test_moving_in.py starts what comes of it."""

import re
from pathlib import Path

from tests import moving_in
from tests.upgrading import git


def test_what_existed_is_there_and_the_stack_beside_it(tmp_path: Path) -> None:
    folder = moving_in.move_in(tmp_path, "shop")
    status = git(folder, "status", "--porcelain", "--untracked-files=all")
    changed = dict(line.split(maxsplit=1)[::-1] for line in status.splitlines())
    assert {name for name, how in changed.items() if how == "M"} == {
        *("config/asgi.py", "config/celery_app.py", "config/settings/base.py", "config/urls.py"),
        "pyproject.toml",
    }
    assert "D" not in changed.values()
    assert {"stack/settings.py", "ops/deploy", "compose.yaml", "docs/broker.md"} <= changed.keys()
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600


def test_at_most_30_lines_are_changed() -> None:
    diffs = re.findall(r"```diff\n(.*?)```", moving_in.GUIDE, re.DOTALL)
    changes = [pair for diff in diffs for pair in moving_in.hunks(diff)]
    (settings,) = moving_in.blocks("2. Settings", "python")
    lines = sum(max(old.count("\n"), new.count("\n")) for old, new in changes)
    lines += settings.count("\n") - settings.count("\n\n")
    assert lines <= 30
