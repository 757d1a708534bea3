"""The stack as `docker compose up` starts it for a developer."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
import yaml
from playwright.sync_api import Page

from tests.baking import bake

from .stack import Stack, wait_for

MODEL = """

class Order(models.Model):
    total = models.IntegerField()

    def __str__(self) -> str:
        return str(self.total)
"""

VIEW = """
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from .models import Order
from .tasks import send_receipt


@transaction.atomic
def place_order(request: HttpRequest) -> HttpResponse:
    order = Order.objects.create(total=1)
    {call}
    return HttpResponse(status=201)
"""

MIGRATION = """
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("posts", "0001_initial")]
    operations = [migrations.RemoveField("post", "title")]
"""


def ci_steps(stack: Stack) -> list[dict[str, str]]:
    """Return the steps of the project's workflow that run a command."""
    workflow = yaml.safe_load((stack.folder / ".github/workflows/ci.yaml").read_text())
    return [step for step in workflow["jobs"]["test"]["steps"] if "run" in step]


def test_one_web_is_started_and_everything_is_healthy(laptop: Stack) -> None:
    services = "beat broker cache db flower proxy sample-site web-a".split()
    services += ["worker-crawl", "worker-default", "worker-notify"]
    containers = laptop.containers()
    assert sorted(containers) == sorted([*services, "migrate"])
    # A worker that reloads may be late for its check.
    wait_for("all healthy", lambda: {laptop.health(name) for name in services} == {"healthy"})


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


@pytest.mark.usefixtures("restored")
def test_a_changed_template_shows_at_the_next_request(laptop: Stack) -> None:
    laptop.edit("templates/home.html", "<h1>It works</h1>", "<h1>Welcome</h1>")
    wait_for("the changed template", lambda: "<h1>Welcome</h1>" in laptop.get("/").text)


@pytest.mark.usefixtures("restored")
def test_a_running_task_ends_before_its_worker_takes_the_changed_code(laptop: Stack) -> None:
    running = laptop.send("crawl", steps=50)  # 15 s
    state = f"from config.celery import app; print(app.AsyncResult({running!r}).state)"
    wait_for("its start", lambda: laptop.python(state) == "PROGRESS")
    laptop.edit("stack/tasks.py", "Done by", "Changed by")
    assert laptop.python(state) == "PROGRESS"
    # Cut off, it would come back much later: when its worker was silent for 2 TASK_TIME_LIMIT.
    assert laptop.result(running).startswith("Done by")
    changed = laptop.send("crawl", steps=1)
    assert laptop.result(changed).startswith("Changed by")
    laptop.edit("stack/tasks.py", "Changed by", "Done by")


@pytest.mark.usefixtures("restored")
def test_a_task_that_is_called_before_its_worker_has_reloaded_waits_and_then_runs(
    laptop: Stack,
) -> None:
    def log() -> str:
        return laptop.containers()["worker-crawl"].logs(since=since).decode()

    since = time.time()
    started = laptop.containers()["worker-crawl"].attrs["State"]["StartedAt"]
    code = (
        "from config.celery import app;"
        "print(*(app.send_task('stack.tasks.added', (n,), queue='crawl').id for n in range(3)))"
    )
    tasks = laptop.python(code).split()
    wait_for(
        "all are known to be unknown", lambda: log().count("Unknown task stack.tasks.added") == 3
    )
    # Though there are more than the worker takes at a time, it goes on.
    assert laptop.result(laptop.send("crawl", steps=1)).startswith("Done by")
    source = (laptop.folder / "stack/tasks.py").read_text()
    added = "\n\n@shared_task\ndef added(number: int) -> int:\n    return number + 1\n"
    (laptop.folder / "stack/tasks.py").write_text(source + added)
    assert [laptop.result(task) for task in tasks] == ["1", "2", "3"]
    assert laptop.containers()["worker-crawl"].attrs["State"]["StartedAt"] == started
    (laptop.folder / "stack/tasks.py").write_text(source)


@pytest.mark.usefixtures("restored")
def test_a_changed_view_and_setting_are_used_by_the_web_and_by_workers(laptop: Stack) -> None:
    """At once, because each change restarts every worker."""

    def children() -> str:
        worker = f"crawl@{laptop.slug}"
        stats = f"app.control.inspect([{worker!r}]).stats() or {{}}"  # none while it starts
        size = f"({stats}).get({worker!r}, {{}}).get('pool', {{}}).get('max-concurrency')"
        return laptop.python(f"from config.celery import app; print({size})")

    wait_for("the worker", lambda: children() == "2")
    laptop.edit("config/settings.py", "\nQUEUES = ", "\nCELERY_WORKER_CONCURRENCY = 3\nQUEUES = ")
    laptop.edit("config/settings.py", '= "My Project"', '= "Another Name"')
    laptop.edit("stack/health.py", 'b"ok"', 'b"changed"')
    wait_for("the changed view", lambda: laptop.get("/healthz").text == "changed")
    wait_for("the changed page", lambda: "<h1>Another Name</h1>" in laptop.get("/status/").text)
    wait_for("the changed worker", lambda: children() == "3")
    laptop.edit("config/settings.py", "\nCELERY_WORKER_CONCURRENCY = 3", "")
    laptop.edit("config/settings.py", '= "Another Name"', '= "My Project"')
    laptop.edit("stack/health.py", 'b"changed"', 'b"ok"')
    wait_for("the old view", lambda: laptop.get("/healthz").text == "ok")
    wait_for("the old page", lambda: "<h1>My Project</h1>" in laptop.get("/status/").text)
    wait_for("the old worker", lambda: children() == "2")


def test_ci_passes_with_what_was_rendered(laptop: Stack) -> None:
    """Build, lint, types, migrations, tests, start: each command of the workflow file."""
    steps = [step for step in ci_steps(laptop) if "if" not in step]  # for a pull request only
    # The settings are there, and what is known of packages may change any day.
    assert steps.pop(0)["run"] == "ops/make-env"
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


@pytest.fixture
def git_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let git work in a folder whose files are not this user's, and commit without a home."""
    settings = {"safe.directory": "*", "user.name": "owner", "user.email": "owner@localhost"}
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(settings)))
    for number, (name, value) in enumerate(settings.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", name)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)


@pytest.mark.usefixtures("restored", "git_settings")
def test_ci_finds_a_migration_that_breaks_the_version_that_serves_meanwhile(laptop: Stack) -> None:
    (lint,) = (step["run"] for step in ci_steps(laptop) if "if" in step)
    laptop.shell("git init -q -b main && git add . && git commit -q -m base && git branch change")
    laptop.shell('git remote add origin "file://$PWD" && git checkout -q change')
    path = laptop.folder / "posts/migrations/0002_remove_post_title.py"
    path.write_text(MIGRATION)
    laptop.shell("git add . && git commit -q -m change")
    with pytest.raises(AssertionError, match=r"0002_remove_post_title\.py: ban-drop-column"):
        laptop.shell(lint, GITHUB_BASE_REF="main")
    path.write_text(f"# squawk-ignore: ban-drop-column\n{MIGRATION}")
    assert "Migrations without a problem: 1." in laptop.shell(lint, GITHUB_BASE_REF="main")


@pytest.mark.usefixtures("restored", "git_settings")
def test_git_checks_before_each_commit(
    laptop: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path))
    run = f"git add . && {Path(sys.executable).with_name('pre-commit')} run --all-files"
    laptop.shell(f"git init -q && {run}")
    laptop.edit("stack/health.py", "import asyncio\n", "import asyncio\nimport os\n")
    with pytest.raises(AssertionError, match="files were modified by this hook"):
        laptop.shell(run)
    assert "import os" not in (laptop.folder / "stack/health.py").read_text()


@pytest.mark.usefixtures("restored")
def test_the_example_works_by_itself_and_takes_what_is_added(laptop: Stack) -> None:
    """The first three steps of docs/example.md."""

    def sent() -> str:
        query = "Notification.objects.filter(sent_at__isnull=False).count()"
        return laptop.python(f"from notifications.models import Notification; print({query})")

    # beat starts a crawl every two minutes.
    wait_for("a mail for each post of the sample site", lambda: sent() == "5")
    laptop.edit(
        "posts/sample/news.xml",
        "  <updated>2026-11-03T09:00:00Z</updated>\n  <entry>\n",
        "  <updated>2026-11-04T09:00:00Z</updated>\n"
        "  <entry>\n    <id>tag:sample-site,2026:news/4</id>\n    <title>Added by hand</title>\n"
        '    <link href="http://sample-site:8000/4"/>\n  </entry>\n  <entry>\n',
    )
    laptop.python("from posts.tasks import crawl_sites; crawl_sites.delay()")
    wait_for("one more mail", lambda: sent() == "6")
    (show,) = re.findall(
        "`(docker compose logs .*?)` has the mails", (laptop.folder / "docs/example.md").read_text()
    )
    printed = laptop.shell(show)
    assert printed.count("Subject: Added by hand") == 1
    assert f"To: {laptop.settings['DJANGO_SUPERUSER_EMAIL']}" in printed


@pytest.mark.usefixtures("restored")
def test_an_app_a_model_and_a_task_are_added_as_the_readme_says(laptop: Stack) -> None:
    readme = (laptop.folder / "README.md").read_text()
    (startapp,) = re.findall(r"`(.* startapp shop)`", readme)
    laptop.shell(startapp)
    assert (laptop.folder / "shop" / "models.py").stat().st_uid == 4242
    laptop.edit("config/settings.py", '    "stack",\n', '    "stack",\n    "shop",\n')
    task = readme.split("# shop/tasks.py\n")[1].split("# in a view")[0]
    task = task.replace(" ...", '\n    print("order", order_id)').strip()
    (laptop.folder / "shop" / "tasks.py").write_text(f"{task}\n")
    with (laptop.folder / "shop" / "models.py").open("a") as models:
        models.write(MODEL)
    (migrate,) = re.findall(r"^\| change models \| (.*) \|$", readme, flags=re.M)
    for command in re.findall("`(.*?)`", migrate):
        laptop.shell(command)
    (lint,) = (step["run"] for step in ci_steps(laptop) if step["name"] == "Lint")
    laptop.shell(lint)
    call = readme.split("# in a view\n")[1].split("\n```")[0]
    (laptop.folder / "shop" / "views.py").write_text(VIEW.format(call=call))
    laptop.edit(
        "config/urls.py",
        "urlpatterns = [\n",
        "import shop.views\n\nurlpatterns = [\n    path('order', shop.views.place_order),\n",
    )

    def orders() -> list[str]:
        # What print() wrote is in the log.
        return re.findall(
            r"\| order (\d+)$", laptop.shell("docker compose logs worker-default"), re.M
        )

    before = len(orders())
    wait_for("the view", lambda: laptop.get("/order").status_code == 201)
    # The worker may be about to reload.
    wait_for("its task", lambda: len(orders()) > before)
    laptop.shell("docker compose run --rm --no-deps web mypy .")


@pytest.mark.usefixtures("restored")
def test_a_library_is_added_as_the_manual_says(laptop: Stack) -> None:
    laptop.edit(
        "pyproject.toml", '    "django>=6.1,<6.2",\n', '    "django>=6.1,<6.2",\n    "toolz",\n'
    )
    manual = (laptop.folder / "docs/dependencies.md").read_text()
    (commands,) = re.findall(r"```sh\n(.*?)```", manual, re.DOTALL)
    before = (laptop.folder / "requirements.txt").read_text()
    laptop.shell(commands)
    after = (laptop.folder / "requirements.txt").read_text()
    pins = re.compile(r"^[\w-]+==\S+", re.MULTILINE)
    (added,) = set(pins.findall(after)) - set(pins.findall(before))  # nothing else was changed
    assert added.startswith("toolz==")
    version = "import toolz; print('toolz==' + toolz.__version__)"
    for service in ("web-a", "worker-crawl"):
        printed = laptop.compose("exec", "--no-TTY", service, "python", "-c", version)
        assert printed.strip() == added


@pytest.mark.usefixtures("restored")
def test_the_owner_of_the_source_may_change(laptop: Stack) -> None:
    """From 4242 to 0, which a rootless engine maps to the person, and back."""

    def belongs_to(owner: int) -> None:
        for path in [laptop.folder, *laptop.folder.rglob("*")]:
            shutil.chown(path, owner, owner)
        laptop.set(DEV_UID=owner)
        laptop.up("--no-deps", "web-a", "worker-default", "beat", "flower")

    storage = "from django.core.files import base, storage; storage.default_storage"
    try:
        belongs_to(0)
        laptop.shell("docker compose run --rm web ./manage.py startapp other")
        assert (laptop.folder / "other/models.py").stat().st_uid == 0
        laptop.python(f"{storage}.save('of/root.txt', base.ContentFile('x'))")
    finally:
        belongs_to(4242)
    laptop.python(f"{storage}.delete('of/root.txt')")
    laptop.python(f"{storage}.save('of/other.txt', base.ContentFile('x'))")


def test_each_shell_opens(laptop: Stack) -> None:
    readme = (laptop.folder / "README.md").read_text()
    (shells,) = re.findall(r"^\| a shell: .*? \| (.*) \|$", readme, re.MULTILINE)
    asked = {
        "shell": ("print(User.objects.model.__name__)", "User"),
        "psql": ("SELECT current_user || '@' || current_database()", "app@app"),
        "redis-cli": ("PING", "PONG"),
    }
    commands = [command for command in re.findall("`(.*?)`", shells) if "compose" in command]
    assert len(commands) == 3
    for command in commands:
        question, answer = asked[command.split()[-1]]
        line = f'echo "{question}" | {command.replace("exec", "exec --no-TTY", 1)}'
        assert answer in laptop.shell(line)


@pytest.mark.usefixtures("restored")
def test_a_plain_dump_is_loaded(laptop: Stack) -> None:
    readme = (laptop.folder / "README.md").read_text()
    (load,) = re.findall(r"`(docker compose .* < dump\.sql)`", readme)
    dump = "docker compose exec -T db pg_dump --clean --table=django_migrations > dump.sql"
    count = "docker compose exec -T db psql -At -c 'SELECT count(*) FROM django_migrations'"
    laptop.shell(dump)
    before = laptop.shell(count)
    laptop.shell("docker compose exec -T db psql -c 'DROP TABLE django_migrations'")
    laptop.shell(load)
    assert laptop.shell(count) == before


def test_a_source_that_cannot_be_written_is_named(laptop: Stack) -> None:
    command = "docker compose run --rm --no-deps --user 10001 web ./manage.py check"
    printed = laptop.shell(command)
    assert "(stack.W002) User 10001 cannot write to the source" in printed
    assert "Set DEV_UID=4242 in .env" in printed


@pytest.mark.usefixtures("restored")
def test_folders_that_cannot_be_read_keep_no_worker_from_its_changes(laptop: Stack) -> None:
    for name in "abcdefgh":  # the first one ends a search, wherever it is
        (laptop.folder / name).mkdir(mode=0o700)
    laptop.compose("restart", "worker-notify")
    assert laptop.result(laptop.send("notify", steps=1)).startswith("Done by")
    laptop.edit("stack/tasks.py", "Done by", "Changed by")
    wait_for(
        "the changed code",
        lambda: laptop.result(laptop.send("notify", steps=1)).startswith("Changed by"),
    )
    laptop.edit("stack/tasks.py", "Changed by", "Done by")
    printed = laptop.shell("docker compose run --rm --no-deps web ./manage.py check")
    assert '(stack.W004) User 4242 cannot read the folder "a"' in printed


def test_a_second_checkout_has_names_of_its_own(laptop: Stack, tmp_path: Path) -> None:
    before = {name: found.id for name, found in laptop.containers().items()}
    checkout = tmp_path / "checkout"
    shutil.copytree(laptop.folder, checkout, ignore=shutil.ignore_patterns(".env", ".*_cache"))
    name = f"{laptop.slug}_2"

    def run(command: str) -> str:
        return subprocess.check_output(["sh", "-c", command], cwd=checkout, text=True)

    assert f"already: this one is {name}." in run("ops/make-env")
    try:
        run("docker compose --progress quiet up --detach --wait db")
        assert f"image: {name}-dev:latest" in run("docker compose config web")
        assert 'published: "8081"' in run("docker compose config proxy")
        assert {name: found.id for name, found in laptop.containers().items()} == before
        assert run("docker compose ps --quiet db").strip() not in before.values()
        assert f"{name}_db" in run("docker volume ls --quiet").split()
    finally:
        run("docker compose --progress quiet down --volumes")


@pytest.mark.usefixtures("restored")
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


@pytest.mark.long
@pytest.mark.usefixtures("restored")
def test_two_queues_share_a_worker_as_the_manual_says(laptop: Stack) -> None:
    manual = (laptop.folder / "docs/how-to.md").read_text()
    recipe = manual.split("## One worker for several queues\n")[1].split("\n## ")[0]
    (service,) = re.findall(r"```yaml\n(.*?)```", recipe, re.DOTALL)
    (override,) = re.findall(r"`(worker-small: .*?)`", recipe)
    shared = {"compose.yaml": service.replace("mails,reports", "crawl,notify")}
    shared["compose.override.yaml"] = f"  {override}\n"
    for name, lines in shared.items():
        text = (laptop.folder / name).read_text()
        text, found = re.subn(r"(?m)^  worker-(crawl|notify):.*\n(    .*\n)*", "", text)
        assert found == 2
        (laptop.folder / name).write_text(text.replace("\n  beat:", f"\n{lines}\n  beat:", 1))
    laptop.up("--remove-orphans")
    laptop.compose("stop", "beat")  # which sends the example's tasks
    laptop.shell("ops/roll worker-small")

    def rows() -> dict[str, list[str]]:
        lines = [re.split("  +", line) for line in laptop.manage("queues").splitlines()[1:]]
        return {name: [workers, running] for name, _, _, workers, running, *_ in lines}

    tasks = [laptop.send(queue, steps=40) for queue in ("crawl", "notify", "notify")]
    expected = {"default": ["1", "0"], "crawl": ["1", "1"], "notify": ["1", "1"]}
    wait_for("one of each runs", lambda: rows() == expected)
    assert {laptop.result(task) for task in tasks} == {f"Done by small@{laptop.slug}."}


@pytest.mark.usefixtures("restored")
def test_a_queue_with_tasks_is_not_removed_until_they_are_moved(laptop: Stack) -> None:
    laptop.compose("stop", "worker-crawl", "beat")  # which sends the example's
    tasks = [laptop.send("crawl", steps=1) for _ in range(2)]
    lines = re.compile(r"^  worker-crawl:.*\n(    .*\n)*", re.MULTILINE)
    for name in ("compose.yaml", "compose.override.yaml"):
        path = laptop.folder / name
        text, found = lines.subn("", path.read_text())
        assert found == 1
        path.write_text(text)
    laptop.edit("config/settings.py", '"default", "crawl", "notify"', '"default", "notify"')
    laptop.edit(
        "config/settings.py", '"posts.*": {"queue": "crawl"}', '"posts.*": {"queue": "default"}'
    )
    assert "migrate" in laptop.compose("up", "--detach", check=False)
    log = laptop.compose("logs", "--no-log-prefix", "migrate")
    assert '(stack.W001) The queue "crawl" holds 2 tasks and is not in QUEUES' in log

    readme = (laptop.folder / "docs/broker.md").read_text()
    commands = readme.split("## Rename or remove a queue\n")[1].split("```sh\n")[1].split("```")[0]
    move, purge = commands.replace("OLD", "crawl").splitlines()
    assert "Moved 2 tasks from crawl to default." in laptop.shell(move)
    laptop.up()
    for task in tasks:
        assert laptop.result(task) == f"Done by default@{laptop.slug}."
    assert "crawl" not in laptop.manage("queues")
    assert 'There is no queue "crawl"' in laptop.shell(f"{purge} --yes || true")


@pytest.mark.usefixtures("restored")
def test_the_dashboard_is_deleted_as_its_readme_says(laptop: Stack) -> None:
    readme = (laptop.folder / "stack/README.md").read_text()
    steps = readme.split("## Delete the dashboard\n")[1].split("\n## ")[0]
    remove, app, lines = re.findall(r"^\d\. (.*)", steps, re.M)
    laptop.shell(re.findall(r"`(rm .*?)`", remove)[0])
    name, file = re.findall("`(.*?)`", app)[0::2]
    laptop.edit(file, f"    {name},\n", "")
    pattern, *files = re.findall("`(.*?)`", lines)
    for file in files:
        path = laptop.folder / file
        kept = [line for line in path.read_text().splitlines() if pattern not in line]
        path.write_text("\n".join(kept) + "\n")
    wait_for("a page less", lambda: laptop.get("/status/").status_code == 404)
    assert laptop.get("/").status_code == 200
    # Tests of the broker and of servers, a third of the time, never reach a page.
    others = [
        f"--ignore=stack/tests/test_{name}.py" for name in ("redis_transport", "servers", "task")
    ]
    tests = f"pytest {' '.join(others)} stack tests/test_home.py"
    check = f"./manage.py check && ruff check . && mypy --no-incremental . && {tests}"
    printed = laptop.shell(f"docker compose run --rm web sh -c '{check}'")
    assert re.search(r"\d+ passed", printed)


@pytest.mark.parametrize("path", ["/flower/", "/flower/workers", "/flower/api/workers"])
def test_flower_requires_its_password(laptop: Stack, path: str) -> None:
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
        row.locator("text=Online").wait_for()
    page.goto(f"{laptop.url}/flower/tasks")
    page.locator(f"a[href*='{task}']").first.click()
    page.locator("text=SUCCESS").first.wait_for()
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
