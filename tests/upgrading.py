"""A template with two versions, and a project of the first one that its owner has changed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.baking import TEMPLATE, repository_files

CRUFT = Path(sys.executable).with_name("cruft")
(PROJECT,) = (path.name for path in TEMPLATE.glob("{{*}}"))

# What the owner does with the project: a file, what is replaced there, and by what.
OWNERS = [
    ("config/settings.py", '    "stack",\n', '    "shop",\n    "stack",\n'),
    (
        "config/settings.py",
        '"notify"]\n',
        '"notify", "thumbnails"]\n\nCELERY_RESULT_EXPIRES = 60\n',
    ),
    (
        "compose.yaml",
        "\n  beat: #",
        "\n  worker-thumbnails:\n    <<: *worker\n    environment: {<<: *no-flower, CELERY_WORKER_QUEUES: thumbnails,"
        " CELERY_WORKER_HOSTNAME: thumbnails@mine}\n\n  beat: #",
    ),
    ("compose.override.yaml", "\n  beat:", "\n  worker-thumbnails: *reload\n\n  beat:"),
    ("nginx/slow-down.html", "<h1>", "<h1>Our shop: "),
]
TASK = """from celery import shared_task


@shared_task
def send_receipt(order_id: int) -> str:
    return f"receipt {order_id}"
"""

# What the second version of the template changes.
OURS = [
    ("stack/logs.py", "import logging\n", "# The second version.\nimport logging\n"),
    ("compose.yaml", "  read_only: true\n", "  read_only: true\n  labels: {version: second}\n"),
    (
        "config/settings.py",
        'LANGUAGE_CODE = "en"\n',
        'LANGUAGE_CODE = "en"\nUSE_THOUSAND_SEPARATOR = True\n',
    ),
    (".env.example", "# Web --", "# A setting of the second version.\n# SECOND=\n\n# Web --"),
]
CONFLICT = ("nginx/slow-down.html", "<h1>", "<h1>Please ")

# Who commits, for git and for cruft, which calls it.
OWNER = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in (("NAME", "owner"), ("EMAIL", "owner@localhost"))
}


def git(folder: Path, *arguments: str) -> str:
    """Run git in `folder` as somebody who commits; return what it prints."""
    done = subprocess.run(
        ["git", "-c", "init.defaultBranch=main", *arguments],
        cwd=folder,
        env=os.environ | OWNER,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def commit(folder: Path, message: str) -> None:
    """Commit all that lies in `folder`."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", f"--message={message}")


def replace(folder: Path, name: str, old: str, new: str) -> None:
    """Replace the first `old`, which must be there, by `new` in the file `name`."""
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text, f"{name} has no {old!r}"
    (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")


def first_version(folder: Path) -> Path:
    """Return a repository with the template as it is here, as its first version."""
    template = folder / "template"
    for path in repository_files():
        target = template / path.relative_to(TEMPLATE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    git(template, "init", "--quiet")
    commit(template, "first")
    return template


def second_version(template: Path, *changes: tuple[str, str, str]) -> None:
    """Commit OURS and further changes to the template; add a file of stack/ and remove another."""
    for name, old, new in (*OURS, *changes):
        replace(template / PROJECT, name, old, new)
    (template / PROJECT / "stack/second.py").write_text('"""New in the second version."""\n')
    (template / PROJECT / "stack/tests/test_health.py").unlink()
    commit(template, "second")


def cruft(folder: Path, *arguments: str) -> str:
    """Run cruft in `folder`; return what it prints. AssertionError when it fails."""
    # What cookiecutter remembers goes beside the project, and no home is touched.
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [str(CRUFT), *arguments],
        cwd=folder,
        env=os.environ | OWNER | {"HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def create(template: Path, folder: Path, **answers: str) -> Path:
    """Render a project with cruft, in a git repository of its own; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    answer = json.dumps(answers)
    cruft(
        folder,
        "create",
        "--no-input",
        "--default-config",
        f"--extra-context={answer}",
        str(template),
    )
    (project,) = (path.parent for path in folder.glob("*/compose.yaml"))
    git(project, "init", "--quiet")
    commit(project, "rendered")
    return project


def change_as_owner(project: Path) -> None:
    """Commit OWNERS and an app with a task; set a value in .env, which git ignores."""
    for name, old, new in OWNERS:
        replace(project, name, old, new)
    (project / "shop").mkdir()
    (project / "shop/__init__.py").touch()
    (project / "shop/tasks.py").write_text(TASK)
    text = (project / ".env").read_text(encoding="utf-8")
    text = re.sub("^# LOG_LEVEL=.*$", "LOG_LEVEL=WARNING", text, count=1, flags=re.MULTILINE)
    (project / ".env").write_text(text, encoding="utf-8")
    commit(project, "the owner's changes")
