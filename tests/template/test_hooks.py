"""The hooks: small, pure Python, the same on every system, and harmless to what is there."""

import ast
import re
import stat
import sys
import zoneinfo
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.baking import TEMPLATE, bake

Answer = Callable[..., object]

PRE, POST = (TEMPLATE / "hooks" / f"{name}_gen_project.py" for name in ("pre", "post"))
ANSWERS = TEMPLATE / "hooks/answers.py"

# What could start an engine, ask a network or depend on a shell.
NEVER = {"subprocess", "socket", "ssl", "urllib", "http", "asyncio", "ctypes", "pwd", "fcntl"}


def imported(hook: Path) -> set[str]:
    """Return the modules that a hook imports."""
    # Its Jinja expressions are Python as well: sets of a name.
    nodes = list(ast.walk(ast.parse(hook.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


@pytest.fixture
def hooks_start_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let some Python run in the hooks' processes before them, to make the system look different."""

    def prepend(code: str) -> None:
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return prepend


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Read mode and bytes of everything in a folder."""
    return {
        path.relative_to(folder).as_posix(): (
            stat.S_IMODE(path.stat().st_mode),
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    }


def owner(project: Path) -> str:
    """Return the user id that the laptop's containers will have."""
    (uid,) = re.findall(r"^DEV_UID=(.*)$", (project / ".env").read_text("utf-8"), re.MULTILINE)
    return uid


def test_the_post_hook_is_under_60_lines() -> None:
    assert len(POST.read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.parametrize("hook", [PRE, POST, ANSWERS], ids=["pre", "post", "answers"])
def test_a_hook_needs_only_python_and_neither_engine_nor_network(hook: Path) -> None:
    assert imported(hook) <= sys.stdlib_module_names | {"cookiecutter"}
    assert imported(hook) & NEVER == set()


def test_without_posix_the_hooks_do_the_same(
    answer: Answer, hooks_start_with: Callable[[str], None], defaults: Path
) -> None:
    hooks_start_with(
        "import os\n"
        "for name in ('getuid', 'geteuid', 'getgid', 'getegid', 'fchmod', 'chown', 'fork'):\n"
        "    delattr(os, name)\n"
    )
    project = answer().project
    assert owner(project) == "10001"
    assert set(contents(project)) == set(contents(defaults))
    assert b"\r" not in (project / ".env").read_bytes()


def test_files_made_in_a_container_will_belong_to_the_person(
    answer: Answer, hooks_start_with: Callable[[str], None]
) -> None:
    hooks_start_with("import os\nos.getuid = lambda: 4321\n")
    assert owner(answer().project) == "4321"


def test_no_container_runs_as_root_because_root_rendered_the_project(
    answer: Answer, hooks_start_with: Callable[[str], None]
) -> None:
    hooks_start_with("import os\nos.getuid = lambda: 0\nos.chown = lambda *args: None\n")
    project = answer().project
    assert owner(project) == "10001"
    # They write to the source as its group.
    for path in [project, project / "config", project / "config/settings.py"]:
        assert path.stat().st_mode & stat.S_IWGRP
    assert stat.S_IMODE((project / ".env").stat().st_mode) == 0o600


def test_without_a_time_zone_database_a_name_that_looks_like_one_is_taken(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    settings = answer(timezone="Europe/Berlin").project / "config/settings.py"
    assert 'TIME_ZONE = "Europe/Berlin"\n' in settings.read_text(encoding="utf-8")


def test_without_a_time_zone_database_code_is_still_refused(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    outcome = answer(timezone='UTC"; import os; "')
    assert outcome.code != 0
    assert [sentence.split()[:2] for sentence in outcome.sentences] == [["Refused:", "timezone"]]
    assert outcome.left == []


def test_a_refusal_is_readable_on_a_terminal_without_unicode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with pytest.raises(RuntimeError, match=r'\nRefused: project_slug "[^\n]+$'):
        bake(tmp_path, project_slug="가게")


@pytest.mark.parametrize(
    "options",
    [(), ("--overwrite-if-exists",), ("--skip-if-file-exists", "--overwrite-if-exists")],
    ids=lambda options: " ".join(options) or "no option",
)
def test_a_folder_with_something_in_it_is_never_overwritten(
    answer: Answer, tmp_path: Path, options: tuple[str, ...]
) -> None:
    for name in (".env", "notes.txt", "config/settings.py"):
        there = tmp_path / "output/my_project" / name
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text("mine\n", encoding="utf-8")
        there.chmod(0o640)
    before = contents(tmp_path / "output")
    outcome = answer(*options)
    assert outcome.code != 0
    assert contents(outcome.output) == before
    if options:  # without, cookiecutter says so itself
        assert outcome.sentences == [
            "Refused: the folder my_project is not empty and stays as it is."
        ]


def test_one_hidden_file_is_enough_to_leave_a_folder_alone(answer: Answer, tmp_path: Path) -> None:
    (tmp_path / "output/my_project/.git").mkdir(parents=True)
    assert answer("--overwrite-if-exists").left == ["my_project", "my_project/.git"]


def test_rendering_twice_leaves_the_first_project_as_it_is(answer: Answer) -> None:
    first = contents(answer().project)
    again = answer("--overwrite-if-exists", queues="images", example="false")
    assert again.code != 0
    assert contents(again.output / "my_project") == first


def test_the_command_as_a_person_types_it_says_why_it_refuses(tmp_path: Path) -> None:
    # One sentence after what `bake` adds: no traceback.
    with pytest.raises(RuntimeError, match=r"\A[^\n]*:\nRefused: [^\n]*always exists\.\n\Z"):
        bake(tmp_path, queues="default")
    assert list(tmp_path.iterdir()) == []


def test_a_project_can_be_rendered_where_no_program_is_found(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert answer().project
