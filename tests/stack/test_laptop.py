"""The stack as `docker compose up` starts it for a developer."""

import re
import sys
from pathlib import Path

import pytest
import requests
import yaml
from playwright.sync_api import Page

from tests.baking import bake

from .stack import Stack, wait_for


def test_one_web_is_started_and_everything_is_healthy(laptop: Stack) -> None:
    services = "beat broker cache db flower proxy sample-site web-a".split()
    services += ["worker-crawl", "worker-default", "worker-notify"]
    containers = laptop.containers()
    assert sorted(containers) == sorted([*services, "migrate"])
    assert {laptop.health(service) for service in services} == {"healthy"}


def test_it_listens_on_this_machine_only(laptop: Stack) -> None:
    ports = laptop.containers()["proxy"].attrs["HostConfig"]["PortBindings"]
    assert ports == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(laptop.port)}]}


def test_no_process_is_root(laptop: Stack) -> None:
    for service in ("web-a", "worker-crawl", "beat", "flower"):
        processes = laptop.containers()[service].top(ps_args="-eo uid,pid,args")["Processes"]
        assert {uid for uid, *_ in processes} == {"4242"}, service


def test_the_admin_of_env_logs_in(laptop: Stack, page: Page) -> None:
    page.goto(f"{laptop.url}/admin/")
    page.fill("#id_username", laptop.settings["DJANGO_SUPERUSER_USERNAME"])
    page.fill("#id_password", laptop.settings["DJANGO_SUPERUSER_PASSWORD"])
    page.click("[type=submit]")
    assert "Site administration" in page.content()


def test_the_toolbar_shows_the_queries_of_a_page(laptop: Stack, page: Page) -> None:
    page.goto(f"{laptop.url}/admin/login/")
    page.locator("#djShowToolBarButton").click()
    page.locator("#djdt-SQLPanel a").first.click()
    page.locator("#SQLPanel .djDebugPanelTitle").wait_for()


def test_a_changed_view_shows_at_the_next_request(laptop: Stack) -> None:
    laptop.edit("core/views.py", 'HttpResponse("ok"', 'HttpResponse("changed"')
    wait_for("the changed view", lambda: laptop.get("/healthz").text == "changed", seconds=10)
    laptop.edit("core/views.py", 'HttpResponse("changed"', 'HttpResponse("ok"')
    wait_for("the old view", lambda: laptop.get("/healthz").text == "ok", seconds=10)


def test_a_changed_template_shows_at_the_next_request(laptop: Stack) -> None:
    laptop.edit("home/templates/home/index.html", "<h2>Queues</h2>", "<h2>Lines</h2>")
    wait_for("the changed template", lambda: "<h2>Lines</h2>" in laptop.get("/").text, seconds=10)


def test_a_changed_task_is_used_within_seconds(laptop: Stack) -> None:
    laptop.edit("core/tasks.py", "Done by", "Changed by")
    wait_for(
        "the changed task",
        lambda: laptop.result(laptop.send("crawl", steps=1)).startswith("Changed by"),
        seconds=15,
    )
    laptop.edit("core/tasks.py", "Changed by", "Done by")


def test_ci_passes_with_what_was_rendered(laptop: Stack) -> None:
    """Build, lint, types, migrations, tests, start: each command of the workflow file."""
    workflow = yaml.safe_load((laptop.folder / ".github/workflows/ci.yaml").read_text())
    steps = [step for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    # The settings are there, and what is known of packages may change any day.
    assert ".env" in steps.pop(0)["run"]
    assert "pip-audit" in steps.pop()["run"]
    assert len(steps) == 6
    for step in steps:
        printed = laptop.shell(step["run"])
        assert step["name"] != "Test" or re.search(r"\d+ passed", printed)


def test_types_are_right_with_other_answers(laptop: Stack, tmp_path: Path) -> None:
    project = bake(tmp_path, example="false", broker="rabbitmq", queues="none")
    printed = laptop.docker.containers.run(
        f"{laptop.slug}-dev",
        ["mypy", "--cache-dir=/tmp", "."],
        environment=["SECRET_KEY=x"],
        volumes=[f"{project}:/app:ro"],
        remove=True,
    )
    assert b"no issues found" in printed


def test_git_checks_before_each_commit(
    laptop: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path))
    # The files are not this user's, which git would refuse.
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "safe.directory")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "*")
    run = f"git add . && {Path(sys.executable).with_name('pre-commit')} run --all-files"
    laptop.shell(f"git init -q && {run}")
    laptop.edit("core/views.py", "import asyncio\n", "import asyncio\nimport os\n")
    with pytest.raises(AssertionError, match="files were modified by this hook"):
        laptop.shell(run)
    assert "import os" not in (laptop.folder / "core/views.py").read_text()


def test_an_app_a_model_and_a_task_are_added_as_the_readme_says(laptop: Stack) -> None:
    readme = (laptop.folder / "README.md").read_text()
    (startapp,) = re.findall(r"`(.* startapp shop)`", readme)
    laptop.shell(startapp)
    assert (laptop.folder / "shop" / "models.py").stat().st_uid == 4242
    laptop.edit("config/settings.py", '    "core",\n', '    "core",\n    "shop",\n')
    task = readme.split("# shop/tasks.py\n")[1].split("# in a view")[0]
    (laptop.folder / "shop" / "tasks.py").write_text(task.replace("...", "print(order_id)"))
    with (laptop.folder / "shop" / "models.py").open("a") as models:
        models.write("\n\nclass Order(models.Model):\n    total = models.IntegerField()\n")
    (migrate,) = re.findall(r"^\| change models \| (.*) \|$", readme, flags=re.M)
    for command in re.findall("`(.*?)`", migrate):
        laptop.shell(command)
    laptop.python(
        "from shop.models import Order; from shop.tasks import send_receipt;"
        "order = Order.objects.create(total=1); send_receipt.delay(order.pk).get(timeout=20)"
    )


def test_a_queue_is_added_as_the_readme_says(laptop: Stack) -> None:
    readme = (laptop.folder / "README.md").read_text()
    steps = readme.split("## Add a queue\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```\w+\n(.*?)   ```", steps, flags=re.DOTALL)
    compose, override, settings = (re.sub("^   ", "", block, flags=re.M) for block in blocks)
    laptop.edit("compose.yaml", "\n  beat: #", f"\n{compose}\n  beat: #")
    laptop.edit("compose.override.yaml", "\n  beat:", f"\n{override}\n  beat:")
    laptop.edit("config/settings.py", 'QUEUES = ["default", "crawl", "notify"]\n', settings)
    laptop.up()
    task = laptop.send("thumbnails", steps=1)
    assert laptop.result(task) == f"Done by thumbnails@{laptop.slug}."


@pytest.mark.parametrize("path", ["/flower/", "/flower/workers", "/flower/api/workers"])
def test_flower_refuses_who_has_no_password(laptop: Stack, path: str) -> None:
    assert laptop.get(path).status_code == 401
    assert laptop.get(path, auth=("admin", "admin")).status_code == 401


def test_flower_shows_every_worker_online_and_opens_a_task(
    laptop: Stack, page: Page, requests_seen: list[str]
) -> None:
    task = laptop.send("notify", steps=1)
    laptop.result(task)
    user, password = laptop.settings["FLOWER_USER"], laptop.settings["FLOWER_PASSWORD"]
    page.context.set_extra_http_headers(
        {"Authorization": requests.auth._basic_auth_str(user, password)}
    )
    page.goto(f"{laptop.url}/flower/")
    for queue in ("default", "crawl", "notify"):
        row = page.locator("tr", has_text=f"{queue}@{laptop.slug}")
        row.locator("text=Online").wait_for(timeout=15_000)
    page.goto(f"{laptop.url}/flower/tasks")
    page.locator(f"a[href*='{task}']").first.click(timeout=15_000)
    page.locator("text=SUCCESS").first.wait_for(timeout=15_000)
    assert page.url == f"{laptop.url}/flower/task/{task}"
    links = page.eval_on_selector_all(
        "a[href^='/']", "found => found.map(a => a.getAttribute('href'))"
    )
    assert links
    assert all(link.startswith("/flower") for link in links), links
    outside = [
        url for url in requests_seen if not url.startswith((f"{laptop.url}/flower", "data:"))
    ]
    assert outside == []
