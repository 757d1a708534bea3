"""Which files a project has: exactly these."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cookiecutter.generate import generate_context
from cookiecutter.prompt import prompt_for_config

from tests.baking import TEMPLATE

DEFAULTS = """
.devcontainer/devcontainer.json
.dockerignore
.editorconfig
.env
.env.example
.gitattributes
.github/dependabot.yml
.github/workflows/ci.yaml
.github/workflows/deploy.yaml
.gitignore
.pre-commit-config.yaml
Dockerfile
README.md
accounts/__init__.py
accounts/admin.py
accounts/migrations/0001_initial.py
accounts/migrations/__init__.py
accounts/models.py
broker-rabbitmq.yaml
broker-redis.yaml
compose.override.yaml
compose.production.yaml
compose.swarm.yaml
compose.yaml
config/__init__.py
config/asgi.py
config/celery.py
config/settings.py
config/urls.py
docs/broker.md
docs/dependencies.md
docs/development.md
docs/example.md
docs/grafana.json
docs/how-to.md
docs/logs.md
docs/monitoring.md
docs/production.md
docs/runbook.md
docs/security.md
docs/swarm.md
docs/upgrade.md
gunicorn.conf.py
logging.yaml
manage.py
monitoring/alerts-test.yaml
monitoring/alerts.yaml
monitoring/prometheus.yaml
nginx/certificates.sh
nginx/locations/README.md
nginx/nginx.conf
nginx/pages.conf
nginx/plain.conf
nginx/put-certificate.sh
nginx/site.conf
nginx/slow-down.html
nginx/start.sh
nginx/tls.conf
nginx/unavailable.html
nginx/upload.conf
nginx/web.conf
notifications/__init__.py
notifications/admin.py
notifications/migrations/0001_initial.py
notifications/migrations/__init__.py
notifications/models.py
notifications/tasks.py
ops/alarm
ops/backup
ops/cluster.py
ops/common.py
ops/deploy
ops/install
ops/logs
ops/make-env
ops/nodes.py
ops/release
ops/restore
ops/revive
ops/roll
ops/rollback
ops/rotate
ops/status
ops/successors.py
ops/swarm
ops/systemd/alarm@.service
ops/systemd/alarm@.timer
ops/systemd/backup@.service
ops/systemd/backup@.timer
ops/systemd/revive@.service
ops/systemd/revive@.timer
ops/upgrade-data
posts/__init__.py
posts/admin.py
posts/crawler.py
posts/management/__init__.py
posts/management/commands/__init__.py
posts/management/commands/add_sample_site.py
posts/migrations/0001_initial.py
posts/migrations/__init__.py
posts/models.py
posts/sample/news.xml
posts/sample/robots.txt
posts/sample/talks.json
posts/tasks.py
pyproject.toml
requirements-dev.txt
requirements.txt
servers.yaml
stack/README.md
stack/__init__.py
stack/__main__.py
stack/activity.py
stack/alerts.py
stack/apps.py
stack/brokers/__init__.py
stack/brokers/other.py
stack/brokers/rabbitmq.py
stack/brokers/rabbitmq_dead_letters.py
stack/brokers/redis.py
stack/brokers/redis_child.py
stack/brokers/redis_dead_letters.py
stack/brokers/redis_transport.py
stack/brokers/zookeeper_transport.py
stack/cache.py
stack/celery/__init__.py
stack/celery/consumer.py
stack/celery/defaults.py
stack/celery/django_tasks.py
stack/celery/request.py
stack/celery/results.py
stack/celery/settings.py
stack/celery/signals.py
stack/celery/task.py
stack/checks.py
stack/dashboard/__init__.py
stack/dashboard/apps.py
stack/dashboard/failures.py
stack/dashboard/live.py
stack/dashboard/runbook.py
stack/dashboard/static/stack/dashboard.css
stack/dashboard/static/stack/dashboard.js
stack/dashboard/static/stack/icon.svg
stack/dashboard/templates/stack/dashboard.html
stack/dashboard/templates/stack/failed.html
stack/dashboard/templates/stack/runbook.html
stack/dashboard/urls.py
stack/dashboard/views.py
stack/database.py
stack/environment.py
stack/exposition.py
stack/failed.py
stack/health.py
stack/heartbeat.py
stack/interruptible
stack/logs.py
stack/management/__init__.py
stack/management/commands/__init__.py
stack/management/commands/ensure_admin.py
stack/management/commands/failed.py
stack/management/commands/inspect_task.py
stack/management/commands/lint_migrations.py
stack/management/commands/move_queue.py
stack/management/commands/publish.py
stack/management/commands/purge_queue.py
stack/management/commands/queues.py
stack/management/commands/rate_limit.py
stack/management/commands/sample.py
stack/management/table.py
stack/metrics.py
stack/middleware.py
stack/mypy_tasks.py
stack/outbox/__init__.py
stack/outbox/admin.py
stack/outbox/apps.py
stack/outbox/migrations/0001_initial.py
stack/outbox/migrations/__init__.py
stack/outbox/models.py
stack/outbox/tasks.py
stack/pings.py
stack/problems.py
stack/queues.py
stack/requirements-dev.in
stack/requirements.in
stack/sentry.py
stack/settings.py
stack/tasks.py
stack/telemetry.py
stack/templates/stack/unavailable.html
stack/testing.py
stack/tests/test_alerts.py
stack/tests/test_cache.py
stack/tests/test_canvas.py
stack/tests/test_commands.py
stack/tests/test_contract.py
stack/tests/test_dashboard.py
stack/tests/test_django_tasks.py
stack/tests/test_ensure_admin.py
stack/tests/test_failed_page.py
stack/tests/test_health.py
stack/tests/test_heartbeat.py
stack/tests/test_lint_migrations.py
stack/tests/test_logs.py
stack/tests/test_metrics.py
stack/tests/test_middleware.py
stack/tests/test_ops.py
stack/tests/test_outbox.py
stack/tests/test_pings.py
stack/tests/test_private_apis.py
stack/tests/test_problems.py
stack/tests/test_queues.py
stack/tests/test_redis_transport.py
stack/tests/test_results.py
stack/tests/test_servers.py
stack/tests/test_settings.py
stack/tests/test_task.py
stack/tests/test_telemetry.py
stack/watchdog
static/icon.svg
static/site.css
templates/home.html
tests/test_home.py
tests/test_migrations.py
tests/test_notifications.py
tests/test_posts.py
""".split()

# Of which nothing is left without it.
EXAMPLE = (
    """
docs/example.md
tests/test_notifications.py
tests/test_posts.py
""".split()
    + [name for name in DEFAULTS if name.startswith(("notifications/", "posts/"))]
)


def files(project: Path) -> set[str]:
    """Return every file of a project, and every empty folder, which should not be there."""
    return {
        path.relative_to(project).as_posix()
        for path in project.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def test_the_default_answers_give_exactly_these_files(defaults: Path) -> None:
    assert files(defaults) == set(DEFAULTS)


def test_without_the_example_its_files_are_missing_and_no_others(
    render: Callable[..., Path],
) -> None:
    assert files(render(example="false")) == set(DEFAULTS).difference(EXAMPLE)


def test_another_broker_changes_one_line(render: Callable[..., Path], defaults: Path) -> None:
    rabbitmq = render(broker="rabbitmq")
    assert files(rabbitmq) == set(DEFAULTS)
    changed = {
        name
        for name in files(rabbitmq) - {".env"}
        if (rabbitmq / name).read_bytes() != (defaults / name).read_bytes()
    }
    assert changed == {".env.example"}
    manual = (defaults / ".env.example").read_text(encoding="utf-8")
    assert (rabbitmq / ".env.example").read_text(encoding="utf-8") == manual.replace(
        "\nBROKER=redis\n", "\nBROKER=rabbitmq\n"
    )


@pytest.mark.parametrize("queues", ["crawl", "none", "images, daily-reports, send_mail"])
def test_queues_add_and_drop_no_file(render: Callable[..., Path], queues: str) -> None:
    assert files(render(queues=queues, example="false")) == set(DEFAULTS).difference(EXAMPLE)


def test_no_answer_and_none_both_mean_no_further_queue(render: Callable[..., Path]) -> None:
    none, empty = (render(queues=answer, example="false") for answer in ("none", ""))
    for name in files(none) - {".env"}:  # which has secrets of its own
        assert (none / name).read_bytes() == (empty / name).read_bytes(), name


def test_an_unchosen_example_changes_only_the_files_that_name_it(
    render: Callable[..., Path], defaults: Path
) -> None:
    without = render(example="false")
    changed = {
        name
        for name in files(without) - {".env"}
        if (without / name).read_bytes() != (defaults / name).read_bytes()
    }
    assert changed == {
        *(".env.example", "README.md", "config/settings.py"),
        *("compose.override.yaml", "compose.production.yaml", "compose.yaml"),
        *("pyproject.toml", "requirements.txt"),
    }


def test_the_folder_is_named_by_the_slug(render: Callable[..., Path], defaults: Path) -> None:
    assert defaults.name == "my_project"


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Photo Album", "photo_album"),
        ("  It's -- #1!  ", "it_s_1"),
        ("2nd Site", "nd_site"),
        ("한국어", "hangugeo"),
        ("🎉", "my_project"),
        ("12345", "my_project"),
        ("long " * 40, "long_long_long_long_long_long_long_long"),
    ],
)
def test_the_slug_offered_for_a_name_is_never_refused(
    refusals: Callable[..., list[str]], name: str, slug: str
) -> None:
    context = generate_context(TEMPLATE / "cookiecutter.json", extra_context={"project_name": name})
    assert prompt_for_config(context, no_input=True)["project_slug"] == slug
    assert refusals(project_name=name) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_only_commands_can_be_executed(project: Path) -> None:
    executable = {name for name in files(project) if (project / name).stat().st_mode & stat.S_IXUSR}
    commands = {name for name in files(project) if Path(name).parent == Path("ops")}
    commands -= {f"ops/{name}.py" for name in ("cluster", "common", "nodes", "successors")}
    assert len(commands) == 15
    assert executable == {"manage.py", "stack/interruptible", "stack/watchdog", *commands}


def test_no_two_files_differ_only_in_case(project: Path) -> None:
    """On macOS and Windows they would be the same file."""
    names = [path.relative_to(project).as_posix().lower() for path in project.rglob("*")]
    assert len(names) == len(set(names))
