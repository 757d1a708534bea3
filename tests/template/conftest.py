"""Renders each variant once; the tests read what was rendered and never change it."""

import functools
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cookiecutter.cli import main as cookiecutter
from cookiecutter.generate import generate_context
from cookiecutter.prompt import prompt_for_config

from tests.baking import TEMPLATE, arguments, bake

VARIANTS = {
    "defaults": {},
    "one-queue": {"queues": "crawl", "example": "false"},
    "three-queues": {"queues": "images, daily-reports, send_mail", "example": "false"},
    "more-queues": {"queues": "crawl, images, notify"},
    "no-queues": {"queues": "none", "example": "false"},
    "rabbitmq": {"broker": "rabbitmq"},
    "no-example": {"example": "false"},
    "all-different": {
        "project_name": "It's #1: 100% $HOME $(id) <b>&</b> 한국어 🎉",
        "project_slug": "shop-2",
        "domain_name": "www.shop.example",
        "email": "jane.doe+shop@mail.example",
        "queues": "q",
        "broker": "rabbitmq",
        "example": "false",
        "timezone": "Asia/Seoul",
    },
}

# The second is what the line COMPOSE_FILE in .env chooses.
MODES = {"laptop": None, "production": "compose.yaml:compose.production.yaml"}

Render = Callable[..., Path]


def run_here(words: list[str], memory: Path) -> int:
    """
    Run the cookiecutter command in this process and return its exit code.

    That spares most of a second of imports each time; the hooks are processes of their own, as
    ever. `memory` takes what it would leave in a temporary folder.
    """
    # It logs each file that it reads and writes, which would bury what a failed test says.
    logging.getLogger("cookiecutter").propagate = False
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(memory))
            cookiecutter.main(args=words, prog_name="cookiecutter")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # as Python does
            return 1
        return int(end.code or 0)
    except Exception:  # cookiecutter ends with a traceback then, which is a 1
        return 1
    return 0


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Render a variant, or give the folder where it was rendered before."""

    @functools.cache
    def render(**answers: object) -> Path:
        folder = tmp_path_factory.mktemp("rendered")
        if not answers:
            return bake(folder)
        memory = tmp_path_factory.mktemp("memory")
        words = arguments(folder, memory, **answers)
        assert run_here(words, memory) == 0, f"cookiecutter fails for {answers}"
        (project,) = folder.iterdir()
        return project

    return render


@pytest.fixture(scope="session")
def defaults(render: Render) -> Path:
    """The project that the default answers give, rendered by the command as a person types it."""
    return render()


@pytest.fixture(scope="session", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the answers of each variant in turn."""
    return VARIANTS[request.param]


@pytest.fixture(scope="session")
def project(render: Render, variant: dict[str, str]) -> Path:
    """Each rendered variant in turn."""
    return render(**variant)


@pytest.fixture(scope="session", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Choose the laptop and production in turn."""
    return request.param


@pytest.fixture(scope="session")
def compose() -> Callable[..., dict]:
    """Return what `docker compose config` makes of a project, services behind a profile included."""

    @functools.cache
    def config(project: Path, mode: str, profile: str = "*") -> dict:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "HOME", "DOCKER_CONFIG", "SYSTEMROOT", "USERPROFILE")
        }
        if MODES[mode]:
            environment |= {"COMPOSE_FILE": MODES[mode], "COMPOSE_PATH_SEPARATOR": ":"}
        done = subprocess.run(
            ["docker", "compose", f"--profile={profile}", "config", "--format=json"],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode or done.stderr:  # a warning is one too many
            raise RuntimeError(f"docker compose config: {done.stderr}")
        return json.loads(done.stdout)

    return config


@pytest.fixture(scope="session")
def services(project: Path, mode: str, compose: Callable[..., dict]) -> dict[str, dict]:
    """Every service that `docker compose up` starts, of each variant and mode in turn."""
    model = compose(project, mode)
    return {name: item for name, item in model["services"].items() if "profiles" not in item}


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Path, str, str], Path]:
    """Copy a project and replace one line of its .env."""

    def change(project: Path, old: str, new: str) -> Path:
        copy = shutil.copytree(project, tmp_path / new.replace("/", "_") / project.name)
        text = (copy / ".env").read_text(encoding="utf-8")
        text, count = re.subn(f"^{re.escape(old)}$", new, text, flags=re.MULTILINE)
        assert count == 1, f".env has no line {old}"
        (copy / ".env").write_text(text, encoding="utf-8")
        return copy

    return change


@pytest.fixture(scope="session")
def refusals() -> Callable[..., list[str]]:
    """Return what is refused about some answers, without rendering: milliseconds, for long lists."""
    zones = zoneinfo.available_timezones()  # the slow part

    def refusals(**answers: str) -> list[str]:
        context = generate_context(TEMPLATE / "cookiecutter.json", extra_context=answers)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(TEMPLATE)
            patch.setattr(zoneinfo, "available_timezones", lambda: zones)
            try:
                prompt_for_config(context, no_input=True)
            except SystemExit as end:
                return str(end.code).splitlines()
        return []

    return refusals


@dataclass(frozen=True)
class Outcome:
    """What a run of cookiecutter came to."""

    code: int
    sentences: list[str]  # on stderr
    output: Path  # the folder that a project would be in
    project: Path | None

    @property
    def left(self) -> list[str]:
        """What lies in the output folder."""
        return sorted(str(path.relative_to(self.output)) for path in self.output.rglob("*"))


@pytest.fixture
def answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run the cookiecutter command with some answers, or with lines to type, refused or not."""
    output = tmp_path / "output"
    output.mkdir()
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.chdir(tmp_path)

    def answer(*options: str, typed: list[str] | None = None, **answers: object) -> Outcome:
        words = [*options, *arguments(output, memory, **answers)]
        if typed is not None:
            words.remove("--no-input")
            # An empty line takes the default; there are fewer questions than that.
            monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(typed) + "\n" * 20))
        capfd.readouterr()
        code = run_here(words, memory)
        projects = [path.parent for path in output.glob("*/compose.yaml")] if code == 0 else []
        sentences = capfd.readouterr().err.splitlines()
        return Outcome(code, sentences, output, projects[0] if projects else None)

    return answer
