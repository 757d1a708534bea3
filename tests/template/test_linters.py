"""What linters say about the rendered files, and about what the template itself brings: nothing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from tests.baking import TEMPLATE, repository_files

# What gixy-ng would rather have, and why it stays.
GIXY_SKIPS = [
    # $host has no port, without which Flower and CSRF checks refuse a form. A false name gets no
    # further than Django's ALLOWED_HOSTS.
    "host_spoofing",
]

WORKFLOWS = [".github/workflows/ci.yaml", ".github/workflows/deploy.yaml"]


def lint(*command: object, folder: Path) -> None:
    """Run a tool that lies beside this Python; fail with what it printed unless it is content."""
    tool = Path(sys.executable).with_name(str(command[0]))
    done = subprocess.run(
        [str(tool), *map(str, command[1:])],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{command[0]} says:\n{done.stdout}{done.stderr}"


def yaml_problems(paths: list[Path]) -> list[str]:
    """Ask yamllint about some files."""
    config = YamlLintConfig(file=str(Path(__file__).with_name("yamllint.yaml")))
    return [
        f"{path}:{problem.line}: {problem.message}"
        for path in paths
        for problem in linter.run(path.read_text(encoding="utf-8"), config)
    ]


def own_files() -> list[Path]:
    """Every file of this repository that git has or would take, but those to be rendered."""
    (rendered,) = TEMPLATE.glob("{{*}}")
    return [path for path in repository_files() if not path.is_relative_to(rendered)]


def is_shell(path: Path) -> bool:
    """Return whether a file is a shell script, by its first line."""
    first = path.read_bytes().partition(b"\n")[0]
    return first.startswith(b"#!") and first.split(b"/")[-1].split()[-1] in (b"sh", b"bash")


def test_ruff_would_format_nothing(project: Path) -> None:
    lint("ruff", "format", "--no-cache", "--diff", ".", folder=project)


def test_ruff_finds_nothing_with_the_projects_own_rules(project: Path) -> None:
    lint("ruff", "check", "--no-cache", ".", folder=project)


def test_yamllint_finds_nothing(project: Path) -> None:
    assert yaml_problems(list(project.rglob("*.yaml"))) == []


def test_shellcheck_finds_nothing_in_rendered_scripts(project: Path) -> None:
    scripts = [path for path in project.rglob("*") if path.is_file() and is_shell(path)]
    for script in scripts:
        lint("shellcheck", script, folder=project)


@pytest.mark.parametrize(
    "name", ["Dockerfile", "nginx/nginx.conf", "nginx/start.sh", "gunicorn.conf.py"]
)
def test_no_answer_changes_the_image_and_the_proxy(
    defaults: Path, project: Path, name: str
) -> None:
    # So what the following tests say of the defaults, they say of all.
    assert (project / name).read_bytes() == (defaults / name).read_bytes()


def test_workflows_and_dependabots_file_have_githubs_form(defaults: Path) -> None:
    schema = "--builtin-schema=vendor.github-workflows"
    lint("check-jsonschema", schema, *WORKFLOWS, folder=defaults)
    lint("check-jsonschema", schema, WORKFLOWS[0], folder=TEMPLATE)
    schema = "--builtin-schema=vendor.dependabot"
    for folder in (defaults, TEMPLATE):
        lint("check-jsonschema", schema, ".github/dependabot.yml", folder=folder)


def test_the_workflows_are_safe_and_their_actions_are_pinned(defaults: Path) -> None:
    lint("zizmor", "--offline", *WORKFLOWS, folder=defaults)
    lint("zizmor", "--offline", WORKFLOWS[0], folder=TEMPLATE)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_shellcheck_finds_nothing_in_a_workflow(defaults: Path, tmp_path: Path, name: str) -> None:
    workflow = yaml.safe_load((defaults / name).read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert steps
    for step in steps:
        script = tmp_path / "step"
        script.write_text(step["run"], encoding="utf-8")
        lint("shellcheck", "--shell=bash", script, folder=tmp_path)


def test_pre_commit_accepts_its_configuration(defaults: Path) -> None:
    for folder in (defaults, TEMPLATE):
        lint("pre-commit", "validate-config", ".pre-commit-config.yaml", folder=folder)


def test_hadolint_finds_nothing(defaults: Path) -> None:
    lint("hadolint", "--no-color", "Dockerfile", folder=defaults)


@pytest.mark.parametrize("servers", ["plain", "tls"])
def test_gixy_finds_nothing(defaults: Path, tmp_path: Path, servers: str) -> None:
    copy = shutil.copytree(defaults / "nginx", tmp_path / "nginx")
    main = (copy / "nginx.conf").read_text(encoding="utf-8")
    for name, file in (("/tmp/servers.conf", f"{servers}.conf"), ("/tmp/env.conf", "env.conf")):
        assert f"include {name};" in main
        main = main.replace(f"include {name};", f"include {file};")
    (copy / "nginx.conf").write_text(main, encoding="utf-8")
    # mime.types comes with the image, env.conf from start.sh.
    (copy / "mime.types").touch()
    (copy / "env.conf").write_text(
        "resolver 127.0.0.11;\ngeo $https_port { default ''; }\ngeo $trusted { default 0; }\n"
        "map $client_scheme $hsts { https max-age=31536000; default ''; }\n"
    )
    site = (copy / "site.conf").read_text(encoding="utf-8")
    assert "include /tmp/uploads.conf;" in site
    upload = "location /admin/ { client_max_body_size 20m; include upload.conf; }"
    (copy / "site.conf").write_text(
        site.replace("include /tmp/uploads.conf;", upload), encoding="utf-8"
    )
    lint("gixy", f"--skips={','.join(GIXY_SKIPS)}", "nginx.conf", folder=copy)


@pytest.mark.parametrize("https", ["false", "acme", "files", "balancer"])
def test_nginx_accepts_its_configuration(
    defaults: Path, compose: Callable[..., dict], https: str
) -> None:
    """Ask the base image's nginx, as the user and with the file system that compose gives it."""
    proxy = compose(defaults, "production")["services"]["proxy"]
    dockerfile = (defaults / "Dockerfile").read_text(encoding="utf-8")
    image = next(line for line in dockerfile.splitlines() if line.endswith(" AS proxy")).split()[1]
    volumes = [volume["target"] for volume in proxy["volumes"] if not volume.get("read_only")]
    done = subprocess.run(
        [
            *["docker", "run", "--rm", "--pull=never", "--network=none", "--user=101:101"],
            *["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"],
            *[f"--tmpfs={path}" for path in proxy["tmpfs"]],
            # A new volume belongs to the owner of the folder in the image that the Dockerfile makes.
            *[f"--tmpfs={path}:uid=101" for path in volumes],
            *[
                f"--volume={path}:/etc/nginx/{path.name}:ro"
                for path in (defaults / "nginx").iterdir()
            ],
            *[f"--env=HTTPS={https}", "--env=TRUSTED_PROXIES=10.0.0.1, 10.1.0.0/16"],
            *["--entrypoint=sh", image, "/etc/nginx/start.sh", "-t", "-q"],
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_nginx_does_not_start_with_a_folder_that_it_cannot_read(defaults: Path) -> None:
    dockerfile = (defaults / "Dockerfile").read_text(encoding="utf-8")
    image = next(line for line in dockerfile.splitlines() if line.endswith(" AS proxy")).split()[1]
    done = subprocess.run(
        [
            *["docker", "run", "--rm", "--pull=never", "--network=none", "--user=101:101"],
            # As where the files were made with a strict umask.
            *["--tmpfs=/srv/nginx:mode=700", f"--volume={defaults}/nginx/start.sh:/start.sh:ro"],
            *["--entrypoint=sh", image, "/start.sh", "-t", "-q"],
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == ("The proxy, user 101, cannot read the folder nginx/: run chmod -R a+rX nginx")


def test_ruff_finds_nothing_in_the_templates_own_python() -> None:
    own = [
        path
        for path in own_files()
        if path.suffix == ".py" or path.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    ]
    assert TEMPLATE / "script/bootstrap" in own
    lint("ruff", "check", "--no-cache", *own, folder=TEMPLATE)
    # The hooks are Python only once they are rendered.
    own = [path for path in own if path.parent.name != "hooks"]
    lint("ruff", "format", "--no-cache", "--diff", *own, folder=TEMPLATE)


def test_shellcheck_finds_nothing_in_the_templates_own_scripts() -> None:
    scripts = [path for path in own_files() if is_shell(path)]
    assert TEMPLATE / "script/test" in scripts
    lint("shellcheck", *scripts, folder=TEMPLATE)


def test_yamllint_finds_nothing_in_the_templates_own_yaml() -> None:
    own = [path for path in own_files() if path.suffix in (".yaml", ".yml")]
    assert yaml_problems(own) == []


@pytest.mark.parametrize(
    "dockerfile", sorted(TEMPLATE.glob("images/*/Dockerfile")), ids=lambda path: path.parent.name
)
def test_hadolint_finds_nothing_in_the_stand_ins(dockerfile: Path) -> None:
    lint("hadolint", "--no-color", dockerfile, folder=TEMPLATE)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_scripts_can_be_executed() -> None:
    scripts = [path for path in own_files() if path.read_bytes().startswith(b"#!")]
    assert [path for path in scripts if not os.access(path, os.X_OK)] == []
