"""A project overrides any setting of the stack, and what follows from it follows."""

import ast
import subprocess
import sys

import pytest
from celery import current_app
from django.test import override_settings

from stack.checks import settings_are_those_of_env

SHOW = """
import os, sys
sys.modules["overridden"] = module = type(sys)("overridden")
exec(f"from {os.environ['DJANGO_SETTINGS_MODULE']} import *\\n{sys.argv[1]}", module.__dict__)
os.environ["DJANGO_SETTINGS_MODULE"] = "overridden"
from celery.app.utils import find_app
app = find_app(os.environ["CELERY_APP"])
print(eval(sys.argv[2]))
"""


def show(override: str, value: str) -> str:
    """Return what `value` is in a process whose settings end with `override`."""
    command = [sys.executable, "-c", SHOW, override, value]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("override", "value", "expected"),
    [
        ("", "app.conf.task_acks_late", "True"),
        ("CELERY_TASK_ACKS_LATE = False", "app.conf.task_acks_late", "False"),
        ("CELERY_WORKER_CONCURRENCY = 7", "app.conf.worker_concurrency", "7"),
        ("CELERY_WORKER_CONCURRENCY = 7", "app.conf.table()['worker_concurrency']", "7"),
        ("SHOP_URL = 'https://user:secret@shop'", "'secret' in str(app.conf.table())", "False"),
        ("CELERY_BROKER_URL = 'amqp://a:secret@b'", "'secret' in str(app.conf.table())", "False"),
        ("TASK_TIME_LIMIT = 1000", "app.conf.task_soft_time_limit", "900.0"),
        (
            "TASK_TIME_LIMIT = 1000",
            "app.conf.broker_transport_options.get('visibility_timeout')",
            "2000",
        ),
        ("TIME_ZONE = 'Asia/Seoul'", "app.conf.timezone", "Asia/Seoul"),
        (
            "QUEUES = ['default', 'x']",
            "app.amqp.router.route({}, 'x.tasks.y')['queue'].name",
            "x",
        ),
        (
            "QUEUES = ['default', 'x']; CELERY_TASK_ROUTES = {'x.*': {'queue': 'default'}}",
            "app.amqp.router.route({}, 'x.tasks.y')['queue'].name",
            "default",
        ),
        (
            "QUEUES = ['default', 'x']; CELERY_TASK_ROUTES = [{'y.*': 'x'}]",
            "app.amqp.router.route({}, 'y.tasks.z')['queue'].name",
            "x",
        ),
        (
            "CELERY_BROKER_TRANSPORT_OPTIONS = {'visibility_timeout': 7}",
            "[app.conf.broker_transport_options[name] for name in ('visibility_timeout', 'socket_keepalive')]",
            "[7, True]",
        ),
        ("CELERY_BROKER_URL = 'sqs://'", "app.conf.worker_enable_remote_control", "False"),
        ("CELERY_BROKER_URL = 'sqs://'", "app.conf.worker_send_task_events", "False"),
        ("CELERY_BROKER_URL = 'memory://'", "app.conf.worker_enable_remote_control", "True"),
        (
            "CELERY_BROKER_URL = 'sqs://'; CELERY_WORKER_SEND_TASK_EVENTS = True",
            "app.conf.worker_send_task_events",
            "True",
        ),
        (
            "CELERY_BROKER_URL = 'sqs://'; TASK_TIME_LIMIT = 90",
            "app.conf.broker_transport_options['visibility_timeout']",
            "180",
        ),
        (
            "CELERY_BROKER_URL = 'amqp://broker'",
            "app.conf.broker_transport_options['confirm_publish']",
            "True",
        ),
    ],
)
def test_a_setting_is_overridden(override: str, value: str, expected: str) -> None:
    assert show(override, value) == expected


def test_a_test_may_override_a_setting_of_celery(settings) -> None:
    settings.CELERY_TASK_ALWAYS_EAGER = True
    assert current_app.conf.task_always_eager is True


@pytest.mark.parametrize(
    ("name", "expected"),
    [("WORKER_REPORTS_CONCURRENCY", "5"), ("WORKER_SEND_MAIL_CONCURRENCY", "5"), ("other", "3")],
)
def test_a_worker_of_several_queues_takes_the_first_value_for_one_of_them(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.setenv("CELERY_WORKER_QUEUES", "reports,send-mail")
    monkeypatch.setenv("WORKER_CONCURRENCY", "3")
    monkeypatch.setenv(name, "5")
    assert show("", "app.conf.worker_concurrency") == expected


def overlaid(*lines: str) -> dict[str, object]:
    """Return the settings of a module with these lines."""
    module: dict[str, object] = {}
    exec("\n".join(lines), module)  # noqa: S102
    return module


ALL = "from stack.settings import *"


@pytest.mark.parametrize(
    "lines", [(ALL, "QUEUES = ['own']"), ("QUEUES = ['own']", ALL), (ALL, "QUEUES = ['own']", ALL)]
)
def test_a_projects_own_value_wins_whether_it_comes_first_or_last(lines: tuple[str, ...]) -> None:
    found = overlaid(*lines)
    assert (found["QUEUES"], found["STATIC_ROOT"]) == (["own"], "/srv/static")
    assert "sys" not in found  # only what is a setting


def test_a_value_that_is_deleted_before_is_the_stacks() -> None:
    assert overlaid("CACHES = {}", "del CACHES", ALL)["CACHES"] == overlaid(ALL)["CACHES"]


def test_a_project_with_mail_settings_of_its_own_gets_none_beside_them() -> None:
    found = overlaid("EMAIL_BACKEND = 'shop.Mails'", ALL)
    assert (found["EMAIL_BACKEND"], "MAILERS" in found) == ("shop.Mails", False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "('mail', 587, 'me', True, False, 15)"),
        ({"EMAIL_PORT": "465", "EMAIL_USE_SSL": "true"}, "('mail', 465, 'me', False, True, 15)"),
    ],
)
def test_mails_go_to_the_server_in_env(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str
) -> None:
    """By MAILERS, or before Django 6.1 by the settings EMAIL_…."""
    names = {"DEBUG": "false", "EMAIL_HOST": "mail", "EMAIL_HOST_USER": "me"} | given
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    attributes = "host", "port", "username", "use_tls", "use_ssl", "timeout"
    mail = "__import__('django.core.mail').core.mail.get_connection()"
    assert show("", f"__import__('operator').attrgetter{attributes}({mail})") == expected


def test_a_broker_that_kombu_does_not_know_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        show("CELERY_BROKER_URL = 'nats://broker'", "app.conf.task_queues")
    assert 'CELERY_BROKER_URL starts with "nats", and kombu knows no' in failed.value.stderr


ERRORS = (
    "[__import__('django').setup(), *[(error.id, error.msg, error.hint) for error in"
    " __import__('stack.checks', fromlist=['x']).broker_and_results_are_installed()]][1:]"
)


@pytest.mark.parametrize(
    ("override", "setting", "package"),
    [
        ("CELERY_BROKER_URL = 'sqs://'", "CELERY_BROKER_URL", '"kombu[sqs]"'),
        ("CELERY_BROKER_URL = 'zookeeper://z'", "CELERY_BROKER_URL", '"kombu[zookeeper]"'),
        ("CELERY_RESULT_BACKEND = 'cache+memcached://m/'", "CELERY_RESULT_BACKEND", "pymemcache"),
        ("CELERY_RESULT_BACKEND = 'db+postgresql://d'", "CELERY_RESULT_BACKEND", "sqlalchemy"),
        ("CELERY_RESULT_BACKEND = 'django-db'", "CELERY_RESULT_BACKEND", "django_celery_results"),
    ],
)
def test_a_check_names_the_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, override: str, setting: str, package: str
) -> None:
    monkeypatch.delenv(setting)  # for Celery it wins over the settings
    ((number, sentence, hint),) = ast.literal_eval(show(override, ERRORS))
    assert number == "stack.E009"
    assert sentence.startswith(setting)
    assert package in hint


@override_settings(SECURE_SSL_REDIRECT=True)
def test_a_check_names_what_takes_away_from_env() -> None:
    assert settings_are_those_of_env() == []
    with override_settings(SECRET_KEY="in-the-source", MIDDLEWARE=[]):  # noqa: S106
        found = settings_are_those_of_env()
    assert [warning.id for warning in found] == ["stack.W005", "stack.W006"]


def test_a_check_finds_no_package_missing() -> None:
    assert show("", ERRORS) == "[]"


def test_loading_the_settings_loads_no_celery() -> None:
    code = "import sys, stack.settings; print('celery' in sys.modules, 'kombu' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(("setting", "expected"), [("", "False"), ("true", "True")])
def test_web_logs_each_request_when_asked_to_only(
    monkeypatch: pytest.MonkeyPatch, setting: str, expected: str
) -> None:
    monkeypatch.setenv("LOG_REQUESTS", setting)
    handled = "__import__('logging').getLogger('uvicorn.access').hasHandlers()"
    assert show("", f"[__import__('django').setup(), {handled}][1]") == expected
