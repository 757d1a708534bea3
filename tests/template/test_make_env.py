"""ops/make-env: a clone gets its .env, and an existing one keeps its lines."""

import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def clone(defaults: Path, tmp_path: Path) -> Path:
    """What git has of a project: everything but .env."""
    return shutil.copytree(defaults, tmp_path / "clone", ignore=shutil.ignore_patterns(".env"))


def make_env(project: Path) -> str:
    """Run it; return what it printed."""
    return subprocess.check_output([project / "ops/make-env"], cwd=project.parent, text=True)


def settings(path: Path) -> dict[str, str]:
    """Return the names and values of a file."""
    return dict(re.findall(r"^(\w+)=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))


def test_a_clone_gets_what_rendering_gives(clone: Path, defaults: Path) -> None:
    assert make_env(clone) == ".env is ready. Next: docker compose up, then http://localhost:8080\n"
    made, rendered = settings(clone / ".env"), settings(defaults / ".env")
    secret = {name for name in made if re.search("_?(PASSWORD|KEY)$", name)}
    assert {name: value for name, value in made.items() if name not in secret} == {
        name: value for name, value in rendered.items() if name not in secret
    }
    assert len(secret) > 5
    for name in secret:
        assert len(made[name]) == 64
        assert made[name] != rendered[name]
    assert stat.S_IMODE((clone / ".env").stat().st_mode) == 0o600
    assert {path.name for path in clone.iterdir()} == {path.name for path in defaults.iterdir()}
    assert not (clone / "ops/__pycache__").exists()


def test_an_existing_env_gets_missing_settings_and_keeps_the_rest(clone: Path) -> None:
    own = "# mine\nFLOWER_USER='a$b'\nBROKER_PASSWORD=secret\nEMAIL_HOST_PASSWORD=\nDEV_UID=7\nX=1"
    (clone / ".env").write_text(own)
    printed = make_env(clone)
    assert printed.startswith("Added to .env: ")
    assert "POSTGRES_PASSWORD" in printed
    assert "FLOWER_USER" not in printed
    assert (clone / ".env").read_text().startswith(f"{own}\n")
    assert settings(clone / ".env").keys() >= settings(clone / ".env.example").keys()
    before = (clone / ".env").read_bytes()
    assert make_env(clone) == ".env has every setting: nothing was changed.\n"
    assert (clone / ".env").read_bytes() == before


def test_an_empty_password_is_filled_where_it_stands(clone: Path) -> None:
    make_env(clone)
    text = (clone / ".env").read_text()
    (clone / ".env").write_text(re.sub("^CACHE_PASSWORD=.*$", "CACHE_PASSWORD=", text, flags=re.M))
    assert make_env(clone) == "Added to .env: CACHE_PASSWORD.\n"
    old, new = text.splitlines(), (clone / ".env").read_text().splitlines()
    changed = [line for line, other in zip(new, old, strict=True) if line != other]
    assert len(changed) == 1
    assert re.fullmatch(r"CACHE_PASSWORD=[\w-]{64}", changed[0])


def test_without_it_compose_names_the_command(clone: Path) -> None:
    done = subprocess.run(
        ["docker", "compose", "config"], cwd=clone, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "is missing in .env, run ops/make-env" in done.stderr
