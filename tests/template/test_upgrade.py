"""An upgrade as docs/upgrade.md describes it: both sides' changes are there, and nothing is lost."""

import re
import stat
import tomllib
from pathlib import Path

import pytest

from tests.baking import TEMPLATE, bake
from tests.upgrading import (
    CONFLICT,
    OURS,
    OWNERS,
    TASK,
    change_as_owner,
    create,
    cruft,
    first_version,
    git,
    second_version,
)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A repository with the first version of the template."""
    return first_version(tmp_path)


def text(project: Path, name: str) -> str:
    """Return the text of a file."""
    return (project / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_an_upgrade_keeps_what_the_owner_changed_and_takes_what_the_template_changed(
    template: Path, tmp_path: Path, broker: str
) -> None:
    project = create(template, tmp_path / "projects", broker=broker)
    change_as_owner(project)
    env = (project / ".env").read_bytes()
    second_version(template)
    cruft(project, "update", "--skip-apply-ask")

    for name, _, new in OWNERS:
        assert new.strip("\n") in text(project, name), name
    assert text(project, "shop/tasks.py") == TASK
    for name, _, new in OURS:
        assert new.strip("\n") in text(project, name), name
    assert (project / "stack/second.py").exists()
    assert not (project / "stack/tests/test_health.py").exists()

    assert (project / ".env").read_bytes() == env
    assert stat.S_IMODE((project / ".env").stat().st_mode) == 0o600
    assert f"BROKER={broker}".encode() in env
    assert list(project.rglob("*.rej")) == []
    assert re.findall("^(U|AA|.U)", git(project, "status", "--porcelain"), re.M) == []


def test_a_conflict_is_shown_and_neither_side_is_lost(template: Path, tmp_path: Path) -> None:
    project = create(template, tmp_path / "projects")
    change_as_owner(project)
    second_version(template, CONFLICT)
    cruft(project, "update", "--skip-apply-ask")
    name, _, theirs = CONFLICT
    assert name in git(project, "diff", "--name-only", "--diff-filter=U")
    both = text(project, name)
    assert "<<<<<<<" in both
    assert "<h1>Our shop: " in both
    assert theirs in both
    # All else is upgraded.
    assert "# The second version." in text(project, "stack/logs.py")


def test_a_project_that_was_rendered_without_cruft_is_linked_and_upgraded(
    template: Path, tmp_path: Path
) -> None:
    (tmp_path / "projects").mkdir()
    project = bake(tmp_path / "projects", queues="crawl, notify, images")
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=rendered")
    answers = '{"queues": "crawl, notify, images"}'
    cruft(
        project,
        "link",
        "--no-input",
        "--default-config",
        f"--extra-context={answers}",
        str(template),
    )
    change = text(project, ".cruft.json")
    assert "crawl, notify, images" in change
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=linked")
    env = (project / ".env").read_bytes()
    second_version(template)
    cruft(project, "update", "--skip-apply-ask")
    assert "# The second version." in text(project, "stack/logs.py")
    assert "worker-images:" in text(project, "compose.yaml")
    assert (project / ".env").read_bytes() == env


def test_the_version_is_the_same_everywhere(defaults: Path) -> None:
    (version,) = re.findall('^__version__ = "(.*)"$', text(defaults, "stack/__init__.py"), re.M)
    assert f"django-celery-compose {version}" in text(defaults, "README.md")
    (newest, *_) = re.findall(r"^## (\S+)", text(TEMPLATE, "CHANGELOG.md"), re.M)
    assert newest == version


def test_env_is_left_out_of_every_upgrade(defaults: Path) -> None:
    settings = tomllib.loads(text(defaults, "pyproject.toml"))
    assert ".env" in settings["tool"]["cruft"]["skip"]
