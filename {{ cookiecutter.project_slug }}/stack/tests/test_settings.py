"""A project overrides any setting of the stack, and what follows from it follows."""

import subprocess
import sys

import pytest
from celery import current_app

SHOW = """
import os, sys
sys.modules["config.overridden"] = module = type(sys)("config.overridden")
exec("from config.settings import *\\n" + sys.argv[1], module.__dict__)
os.environ["DJANGO_SETTINGS_MODULE"] = "config.overridden"
import config.celery
from celery import current_app as app
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


def test_a_broker_without_a_module_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        show("CELERY_BROKER_URL = 'sqs://'", "app.conf.task_queues")
    assert 'CELERY_BROKER_URL starts with "sqs"' in failed.value.stderr


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
