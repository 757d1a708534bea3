"""Queues, routes and workers are the same, in every rendered file that names them."""

import ast
import os
import re
from collections.abc import Callable
from pathlib import Path

import yaml

CHOSEN = {
    "crawl, notify": ["crawl", "notify"],
    "crawl": ["crawl"],
    "crawl, images, notify": ["crawl", "images", "notify"],
    "none": [],
    "images, daily-reports, send_mail": ["images", "daily-reports", "send_mail"],
    "q": ["q"],
}


def chosen(variant: dict[str, str]) -> list[str]:
    """Return the queues that a variant should have."""
    return ["default", *CHOSEN[variant.get("queues", "crawl, notify")]]


def assigned(project: Path, name: str) -> ast.expr:
    """Find the value of a name in config/settings.py."""
    settings = ast.parse((project / "config/settings.py").read_text(encoding="utf-8"))
    (value,) = (
        node.value
        for node in settings.body
        if isinstance(node, ast.Assign)
        and [ast.unparse(target) for target in node.targets] == [name]
    )
    return value


def test_settings_list_default_and_the_chosen_queues(
    project: Path, variant: dict[str, str]
) -> None:
    assert ast.literal_eval(assigned(project, "QUEUES")) == chosen(variant)


def test_every_queue_has_a_worker_and_every_worker_a_queue(
    services: dict[str, dict], variant: dict[str, str]
) -> None:
    workers = [name for name in services if name.startswith("worker")]
    assert sorted(workers) == sorted(f"worker-{queue}" for queue in chosen(variant))


def test_a_worker_consumes_its_own_queue_and_no_other(
    project: Path, compose: Callable[..., dict], variant: dict[str, str]
) -> None:
    services = compose(project, "production")["services"]
    for queue in chosen(variant):
        worker = services[f"worker-{queue}"]
        assert worker["command"][:4] == ["python", "-m", "stack", "worker"]
        assert worker["environment"]["CELERY_WORKER_QUEUES"] == queue
        assert worker["environment"]["CELERY_WORKER_HOSTNAME"] == f"{queue}@{project.name}"


def test_no_other_service_consumes_a_queue(services: dict[str, dict]) -> None:
    others = {name: service for name, service in services.items() if "worker" not in name}
    for name, service in others.items():
        assert "-Q" not in (service.get("command") or []), name
        assert "CELERY_WORKER_QUEUES" not in (service.get("environment") or {}), name


def test_a_laptop_runs_the_same_commands_and_reloads_them(
    project: Path, compose: Callable[..., dict], variant: dict[str, str]
) -> None:
    laptop = compose(project, "laptop")["services"]
    production = compose(project, "production")["services"]
    for queue in chosen(variant):
        name = f"worker-{queue}"
        assert laptop[name]["command"] == production[name]["command"]
        assert "watchfiles" in str(laptop[name]["entrypoint"])
        assert laptop[name]["environment"]["CELERY_WORKER_QUEUES"] == queue


def test_the_laptops_file_lists_every_worker(project: Path) -> None:
    def workers(file: str) -> set[str]:
        services = yaml.safe_load((project / file).read_text(encoding="utf-8"))["services"]
        return {name for name in services if name.startswith("worker-")}

    assert workers("compose.override.yaml") == workers("compose.yaml")


def test_the_system_check_reads_the_same_queues_from_compose_yaml(
    project: Path, variant: dict[str, str]
) -> None:
    checks = ast.parse((project / "stack/checks.py").read_text(encoding="utf-8"))
    parts = [
        node
        for node in checks.body
        if getattr(node, "name", "") in ("workers", "worker_queues")
        or ast.unparse(node).startswith("CONSUMED = ")
    ]
    names = {"os": os, "re": re, "PROJECT": project}
    exec(compile(ast.Module(parts, []), "checks.py", "exec"), names)
    assert names["worker_queues"]() == set(chosen(variant))


def test_the_readme_shows_the_list_to_extend(project: Path, variant: dict[str, str]) -> None:
    readme = (project / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^ *QUEUES = (\[.*\])$", readme, re.MULTILINE)
    *before, new = ast.literal_eval(shown)
    assert before == chosen(variant)
    assert new not in before
    names = (
        f"<<: *no-flower, CELERY_WORKER_QUEUES: {new}, CELERY_WORKER_HOSTNAME: {new}@{project.name}"
    )
    assert readme.count(f"{{{names}}}") == 1
