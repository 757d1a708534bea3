"""Versions are named once, dependencies are pinned with hashes, and no registry is spelt out."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.baking import TEMPLATE, repository_files

LOCAL = re.compile(r"localhost|.*\.(localhost|local|internal)|[\d.]+|[^.]*")

PINNED = sorted(TEMPLATE.glob("*/requirements*.txt"))


def base_images(project: Path) -> dict[str, set[str]]:
    """Return the images that come from elsewhere, and in which files they are named."""
    found: dict[str, set[str]] = {}
    for path in [project / "Dockerfile", *sorted(project.rglob("*.yaml"))]:
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"^FROM ([^\s:]+:\S+)", text, re.MULTILINE)
        names += re.findall(r"^ *image: ([^\s:]+:[^\s$]+)$", text, re.MULTILINE)
        for name in names:
            if not name.startswith((project.name, "${")):
                found.setdefault(name, set()).add(path.relative_to(project).as_posix())
    return found


def pins(path: Path) -> dict[str, str]:
    """Read name and version of each requirement."""
    text = path.read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;]+)", text, re.MULTILINE))


def stacks(project: Path, name: str) -> list[str]:
    """Return the requirements that the stack lists in one of its files."""
    lines = (project / "stack" / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_each_base_image_is_named_where_it_belongs(defaults: Path) -> None:
    found = {name.partition(":")[0]: files for name, files in base_images(defaults).items()}
    assert found == {
        "redis": {"broker-redis.yaml", "compose.yaml"},
        "rabbitmq": {"broker-rabbitmq.yaml"},
        "python": {"Dockerfile"},
        "nginx": {"Dockerfile"},
        "postgres": {"compose.yaml"},
        "prom/prometheus": {"compose.yaml"},
    }


def test_an_image_has_one_version_and_it_is_a_number(project: Path) -> None:
    images = base_images(project)
    assert len({name.partition(":")[0] for name in images}) == len(images)
    for name in images:
        assert re.fullmatch(r"[a-z/]+:v?\d+(\.\d+)*(-[a-z]+)?", name)


def test_python_is_the_same_in_image_project_and_requirements(project: Path) -> None:
    (image,) = (name for name in base_images(project) if name.startswith("python:"))
    version = re.match(r"python:(\d+\.\d+)", image)[1]
    wanted = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert wanted["project"]["requires-python"] == f">={version}"
    assert wanted["tool"]["uv"]["pip"]["python-version"] == version


def test_every_dependency_is_pinned_at_a_version_that_the_project_wants(project: Path) -> None:
    own = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    for name, requirements in {
        "requirements.txt": own["project"]["dependencies"] + stacks(project, "requirements.in"),
        "requirements-dev.txt": own["dependency-groups"]["dev"]
        + stacks(project, "requirements-dev.in"),
    }.items():
        pinned = {canonicalize_name(key): value for key, value in pins(project / name).items()}
        for requirement in map(Requirement, requirements):
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} in {name}"


@pytest.mark.parametrize("example", ["true", "false"])
def test_every_pin_of_the_image_is_there_for_somebody(
    render: Callable[..., Path], example: str
) -> None:
    project = render(example=example)
    own = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    asked = {
        "app": own["project"]["dependencies"],
        "stack": stacks(project, "requirements.in"),
    }
    text = (project / "requirements.txt").read_text(encoding="utf-8")
    notes = dict(
        re.findall(r"^([\w.-]+)==(?:.*\n)+?    # via((?:.*\n)+?)(?=\w|\Z)", text, re.MULTILINE)
    )
    assert set(notes) == set(pins(project / "requirements.txt"))
    for name, note in notes.items():
        note = note.replace("(pyproject.toml)", "").replace("-r stack/requirements.in", "stack")
        users = set(re.findall(r"[\w.-]+", note))
        for user, lines in asked.items():
            wanted = {canonicalize_name(Requirement(line).name) for line in lines}
            assert (user in users) is (name in wanted), name
        assert users, name
        assert users <= {*asked, *notes}, name


def test_the_tools_of_a_laptop_agree_with_the_image(project: Path) -> None:
    image, laptop = pins(project / "requirements.txt"), pins(project / "requirements-dev.txt")
    assert {name: image[name] for name in image.keys() & laptop} == {
        name: laptop[name] for name in image.keys() & laptop
    }


@pytest.mark.parametrize("path", PINNED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_requirement_has_a_hash_and_comes_from_no_address(path: Path) -> None:
    text = re.sub(r"^\s*#.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    requirements = text.replace("\\\n", " ").strip().splitlines()
    requirements = [line for line in requirements if line.strip()]
    assert len(requirements) > 5
    for line in requirements:
        assert re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line[:60]
        assert "://" not in line, line[:60]


def registry_hosts() -> set[str]:
    """Ask the package tools of this machine which hosts they take packages from."""
    commands = [
        [sys.executable, "-m", "pip", "config", "list"],
        [sys.executable, "-m", "pip", "install", "--help"],  # names the default
    ]
    if npm := shutil.which("npm"):
        commands.append([npm, "config", "get", "registry"])
    if apt := shutil.which("apt-get"):
        commands.append([apt, "indextargets", "--format=$(REPO_URI)"])
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    printed = [process.communicate(timeout=60)[0] for process in running]
    printed += [
        value
        for name, value in os.environ.items()
        if re.match(r"(PIP|UV|NPM_CONFIG)_.*(INDEX|LINKS|REGISTRY)", name, re.IGNORECASE)
    ]
    hosts = {
        urlsplit(url).hostname or ""
        for url in re.findall(r"https?://[^\s'\",)\]]+", " ".join(printed))
    }
    return {host for host in hosts if not LOCAL.fullmatch(host)}


def test_no_file_spells_out_the_host_of_a_package_registry() -> None:
    hosts = registry_hosts()
    assert hosts, "pip names the registry that it uses"
    found = [
        f"{path.relative_to(TEMPLATE)}: {host}"
        for path in repository_files()
        for host in hosts
        if host.encode() in path.read_bytes()
    ]
    assert found == []


def test_there_is_no_lock_file_which_would_have_such_hosts(defaults: Path) -> None:
    names = ("uv.lock", "pylock.toml", "poetry.lock", "package-lock.json", "Pipfile.lock")
    assert [name for name in names if list(defaults.rglob(name))] == []
    assert [name for name in names if (TEMPLATE / name).exists()] == []
