"""What .env holds, and that .env.example explains it."""

import ast
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ops import load

SECRET_NAMES = {
    "SECRET_KEY",
    "FLOWER_PASSWORD",
    "DJANGO_SUPERUSER_PASSWORD",
    "POSTGRES_PASSWORD",
    "BROKER_PASSWORD",
    "CACHE_PASSWORD",
}

# Read by others than this project's files: by ops/alarm, by compose, by Django's createsuperuser, by
# OpenTelemetry, by libpq.
READ_BY_OTHERS = {
    "ALARM_EMAIL",
    "COMPOSE_FILE",
    "DJANGO_SUPERUSER_EMAIL",
    "DJANGO_SUPERUSER_PASSWORD",
    "DJANGO_SUPERUSER_USERNAME",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "PGSSLMODE",
    "PGSSLROOTCERT",
}


def values(project: Path, name: str = ".env") -> dict[str, str]:
    """Read the lines NAME=value."""
    text = (project / name).read_text(encoding="utf-8")
    pairs = re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)
    assert len(pairs) == len(dict(pairs)), "a name is there twice"
    return dict(pairs)


def secrets(project: Path) -> dict[str, str]:
    """Pick the secrets among them."""
    return {
        name: value
        for name, value in values(project).items()
        if name.endswith(("_PASSWORD", "_KEY"))
    }


def explained(project: Path) -> set[str]:
    """Return what .env.example has a line for, used or as a comment."""
    text = (project / ".env.example").read_text(encoding="utf-8")
    return set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=", text, re.MULTILINE))


def in_compose_files(project: Path) -> set[str]:
    """Return each ${NAME} of the compose files, comments apart."""
    return {
        name
        for path in project.rglob("*.yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        for name in re.findall(r"(?<!\$)\$\{(\w+)", re.sub(r"(^| )# .*", "", line))
    }


def in_python(project: Path) -> set[str]:
    """Return each environment variable that Python reads."""
    found = set()
    for path in project.rglob("*.py"):
        if "tests" in path.relative_to(project).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                function, first = ast.unparse(node.func), node.args[0] if node.args else None
            elif isinstance(node, ast.Subscript):
                function, first = ast.unparse(node.value), node.slice
            else:
                continue
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                if re.fullmatch(r"env(\.\w+)?|os\.environ(\.get)?|os\.getenv", function):
                    found.add(first.value)
                elif function == "for_worker":  # for all workers, or for the one of a queue
                    found.add(f"WORKER_{first.value}")
    return found


def set_by_compose(project: Path) -> set[str]:
    """Return what compose.yaml, compose.override.yaml and the Dockerfile set themselves."""
    text = "".join(
        (project / name).read_text(encoding="utf-8")
        for name in ("compose.yaml", "compose.override.yaml")
    )
    dockerfile = (project / "Dockerfile").read_text(encoding="utf-8")
    in_image = re.findall(r"^ENV (.*)$", dockerfile, re.MULTILINE)
    return set(re.findall(r"\b([A-Z][A-Z0-9_]+): ", text)) | set(
        re.findall(r"\b([A-Z][A-Z0-9_]+)=", " ".join(in_image))
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_env_is_for_its_owner_only(project: Path) -> None:
    assert stat.S_IMODE((project / ".env").stat().st_mode) == 0o600


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_env_is_for_its_owner_only_whatever_the_umask_says(answer: Callable[..., object]) -> None:
    before = os.umask(0)
    try:
        project = answer().project
    finally:
        os.umask(before)
    assert stat.S_IMODE((project / ".env").stat().st_mode) == 0o600


def test_every_secret_is_there_and_long(project: Path) -> None:
    assert set(secrets(project)) == SECRET_NAMES
    for name, value in secrets(project).items():
        # 40 characters of 64 kinds are 240 bits. Nothing to quote in a URL, in .env, in a shell.
        assert re.fullmatch(r"[A-Za-z0-9_-]{40,}", value), name
        assert len(set(value)) > 15, name


def test_the_key_is_as_long_as_django_wants_it(project: Path) -> None:
    assert len(secrets(project)["SECRET_KEY"]) >= 50


def test_no_two_secrets_of_a_project_are_equal(project: Path) -> None:
    assert len(set(secrets(project).values())) == len(SECRET_NAMES)


def test_two_projects_share_no_secret(answer: Callable[..., object], defaults: Path) -> None:
    again = answer().project
    assert not set(secrets(again).values()) & set(secrets(defaults).values())


def test_no_other_file_holds_a_secret(project: Path) -> None:
    held = [
        f"{name} in {path.name}"
        for path in project.rglob("*")
        if path.is_file() and path.name != ".env"
        for name, value in secrets(project).items()
        if value in path.read_text(encoding="utf-8")
    ]
    assert held == []


def test_the_manual_has_the_names_of_secrets_without_a_value(project: Path) -> None:
    manual = values(project, ".env.example")
    assert {name for name, value in manual.items() if not value} == SECRET_NAMES


def test_env_is_the_manual_with_secrets_and_the_owner_filled_in(project: Path) -> None:
    manual = (project / ".env.example").read_text(encoding="utf-8").splitlines()
    env = (project / ".env").read_text(encoding="utf-8").splitlines()
    changed = {old for old, new in zip(manual, env, strict=True) if old != new}
    assert changed - {"DEV_UID=10001"} == {f"{name}=" for name in SECRET_NAMES}


def test_git_and_images_never_get_env(project: Path) -> None:
    assert ".env" in (project / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = (project / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".*", ".env"} & set(ignored)
    assert [line for line in ignored if line.startswith("!")] == ["!docs/runbook.md"]


def test_every_variable_of_the_compose_files_is_explained(project: Path) -> None:
    # Those are made by ops/common.py, for compose alone.
    made = {"DB_MADE_WITH", "BROKER_MADE_WITH", "CACHE_MADE_WITH"}
    # What there is for each queue is shown once.
    shown = {
        re.sub("^WORKER_.+_(REPLICAS|NODES)$", r"WORKER_DEFAULT_\1", name)
        for name in in_compose_files(project)
    }
    assert shown - explained(project) == made


def test_every_variable_that_python_reads_is_explained_or_set_by_compose(project: Path) -> None:
    # gunicorn.conf.py sets the one for its own process alone, and ops/release the other.
    known = explained(project) | set_by_compose(project) | {"DATABASE_POOL_SIZE", "REFUSE_STRANDED"}
    assert in_python(project) - known == set()


def test_every_explained_setting_is_used(project: Path) -> None:
    read = in_compose_files(project) | in_python(project) | READ_BY_OTHERS
    example = {  # the spelling for one queue is shown once
        name
        for name in explained(project)
        if any(re.fullmatch(f"WORKER_[A-Z0-9_]+_{known[7:]}", name) for known in read)
    }
    assert explained(project) - read - example == set()


def test_a_default_in_the_manual_is_the_one_in_use(project: Path) -> None:
    """A commented NAME=value shows what happens without it; one that differs misleads."""
    text = (project / ".env.example").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^# ([A-Z][A-Z0-9_]*)=(\S+)$", text, re.MULTILINE))
    used: dict[str, set[str]] = {}
    for path in project.rglob("*.yaml"):
        for name, value in re.findall(r"\$\{(\w+):-([^}]*)\}", path.read_text(encoding="utf-8")):
            used.setdefault(name, set()).add(value)
    assert len(shown) > 10
    for name, value in shown.items():
        if name in used and name != "HTTP_PORT":
            assert used[name] == {value}, name
    assert used["HTTP_PORT"] == {"8080", "80"}


def test_every_compose_variable_has_one_default(project: Path) -> None:
    lines = values(project, ".env.example")
    for path in project.rglob("*.yaml"):
        for name, value in re.findall(r"\$\{(\w+):-([^}]*)\}", path.read_text(encoding="utf-8")):
            if name in lines and name != "BROKER":  # which is an answer
                assert lines[name] == value, f"{name} in {path.name}"


def test_the_password_of_a_server_elsewhere_is_not_replaced_here(
    defaults: Path, changed: Callable[..., Path]
) -> None:
    copy = changed(defaults, "# POSTGRES_HOST=", "POSTGRES_HOST=db.example.com")
    rotate = [copy / "ops" / "rotate", "POSTGRES_PASSWORD"]
    done = subprocess.run(rotate, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "The site uses a server of yours: change POSTGRES_PASSWORD there, then in .env.\n"
    )
    assert (copy / ".env.rotation").exists() is False


def test_a_deploy_needs_neither_image_nor_data_of_a_server_elsewhere(
    defaults: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(defaults, tmp_path / defaults.name)
    with (copy / ".env").open("a", encoding="utf-8") as env:
        env.write(
            "COMPOSE_FILE=compose.yaml:compose.production.yaml\nPOSTGRES_HOST=db.example.com\n"
        )
    release, upgrade = load(copy, "release"), load(copy, "upgrade-data")
    assert release.services(copy, own=False) == ["broker", "cache"]
    others = [name for name in release.images(copy) if not name.startswith(defaults.name)]
    assert others == ["redis:8.0"]
    assert [store.service for store in upgrade.stores()] == ["broker"]
