"""Whose files are whose: stack/ is the template's, config/ and the apps are the owner's."""

import ast
import graphlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

OURS = "stack"


def modules(project: Path) -> dict[str, Path]:
    """Return the files of a project's Python modules by their dotted names, tests left out."""
    found = {}
    for path in sorted(project.rglob("*.py")):
        parts = path.relative_to(project).with_suffix("").parts
        if "tests" not in parts and "migrations" not in parts and parts != ("manage",):
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the project that a module imports, anywhere in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            found |= inside & known.keys() or {base}
    return {module for module in found if module in known and module != name}


@pytest.fixture
def imports(project: Path) -> dict[str, set[str]]:
    """Return what each module imports."""
    known = modules(project)
    return {name: imported(name, path, known) for name, path in known.items()}


def test_no_module_imports_itself_through_others(imports: dict[str, set[str]]) -> None:
    assert len(imports) > 30
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError with the modules


def test_the_stack_imports_nothing_of_its_owner(imports: dict[str, set[str]]) -> None:
    ours = {name: found for name, found in imports.items() if name.split(".")[0] == OURS}
    assert any("stack.logs" in found for found in ours.values())
    foreign = {
        f"{name} imports {module}"
        for name, found in ours.items()
        for module in found
        if module.split(".")[0] != OURS
    }
    assert foreign == set()


def test_the_stack_names_no_module_of_its_owner_in_a_string(project: Path) -> None:
    # Such as a dotted path for Celery, or code for a shell.
    owned = {path.parent.name for path in project.glob("*/__init__.py")} - {OURS}
    assert "config" in owned
    pattern = re.compile(rf"\b({'|'.join(sorted(owned))})\.\w+[.:]\w+")
    found = [
        f"{path.relative_to(project)}: {match[0]}"
        for path in sorted((project / OURS).rglob("*.py"))
        if "tests" not in path.parts
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_the_stack_has_no_name_that_a_project_may_have_too(project: Path) -> None:
    files = [path.relative_to(project / OURS) for path in (project / OURS).rglob("*")]
    for kind in ("templates", "static"):
        found = [path.parts[path.parts.index(kind) + 1 :] for path in files if kind in path.parts]
        assert {parts[0] for parts in found if parts} == {OURS}, kind
    code = {path: path.read_text(encoding="utf-8") for path in (project / OURS).rglob("*.py")}
    for app in [path for path in code if path.name == "apps.py" and path.parent != project / OURS]:
        assert re.findall(r'^    label = "(\w+)"', code[app], re.M) == [f"{OURS}_{app.parent.name}"]
    for urls in [path for path in code if path.name == "urls.py"]:
        assert re.findall(r'^app_name = "(\w+)"', code[urls], re.M) == [
            f"{OURS}_{urls.parent.name}"
        ]


def test_config_has_only_files_that_its_owner_edits(project: Path) -> None:
    names = {path.name for path in (project / "config").iterdir()}
    assert names == {"__init__.py", "asgi.py", "celery.py", "settings.py", "urls.py"}


def test_settings_app_and_application_are_each_named_in_one_place(project: Path) -> None:
    for value in ("config.settings", "config.asgi"):
        places = [
            path.relative_to(project).as_posix()
            for path in sorted(project.rglob("*"))
            if path.is_file()
            and path.suffix not in (".md", ".py")
            and re.search(rf"\b{re.escape(value)}\b", path.read_text(encoding="utf-8"))
        ]
        assert places == ["Dockerfile"], value


def test_the_manual_names_each_file_from_which_the_example_is_deleted(
    render: Callable[..., Path], defaults: Path
) -> None:
    without = render(example="false")
    manual = (defaults / "docs/example.md").read_text(encoding="utf-8")
    _, removed, changed = re.findall(
        r"^\d\. (.*(?:\n   .*)*)", manual.split("## Delete it")[1], re.M
    )
    (command,) = re.findall(r"`rm -r (.*)`", removed)
    gone = {
        path.relative_to(defaults).as_posix()
        for path in defaults.rglob("*")
        if path.is_file() and not (without / path.relative_to(defaults)).exists()
    }
    assert gone == {
        path.relative_to(defaults).as_posix()
        for name in command.split()
        for path in [defaults / name, *(defaults / name).rglob("*")]
        if path.is_file()
    }
    edited = {
        path.relative_to(without).as_posix()
        for path in without.rglob("*")
        if path.is_file()
        and path.read_bytes() != (defaults / path.relative_to(without)).read_bytes()
    }
    assert edited == set(re.findall(r"`([\w./]+\.\w+|\.env)`", changed))
    # and the search that it gives finds the lines
    (pattern,) = re.findall(r'grep -rnE "(.*)"', changed)
    for name in edited - {"pyproject.toml", "requirements.txt"}:
        assert re.search(pattern, (defaults / name).read_text(encoding="utf-8")), name
        assert not re.search(pattern, (without / name).read_text(encoding="utf-8")), name
