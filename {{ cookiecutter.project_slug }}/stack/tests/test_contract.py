"""A project of another shape than this one has all that the stack needs (README.md)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from stack.checks import PROJECT

NAME = "of_another_shape"  # which no app of this project has
# With a settings package, a BASE_DIR that is a text, another cache and no admin.
OWN = """
import os
BASE_DIR = os.path.dirname(__file__)
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
INSTALLED_APPS = ["stack", "django.contrib.contenttypes", "django.contrib.auth"]
ROOT_URLCONF = "of_another_shape.urls"
USE_TZ = False
CELERY_TASK_ROUTES = [("of_another_shape.*", "default"), {"mall.*": "default"}]
"""
ALL = "from stack.settings import *\n"
FILES = {
    "__init__.py": "from .celery import app as celery_app",
    "celery.py": """
from stack.celery import Celery
app = Celery("of_another_shape")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
""",
    "asgi.py": """
from django.core.asgi import get_asgi_application
from stack.health import HealthChecks
application = HealthChecks(get_asgi_application())
""",
    "urls.py": "urlpatterns = []",
    "settings/__init__.py": "",
    "settings/base.py": OWN,
}
FIRST, LAST = f"from .base import *\n{ALL}", f"{ALL}from .base import *\n"
CHECK = f"{PROJECT}/manage.py check"
GUNICORN = f"-m gunicorn --config={PROJECT}/gunicorn.conf.py --check-config"
PYTEST = f"-m pytest -k Seoul --config-file={PROJECT}/pyproject.toml {PROJECT}/stack/tests"


@pytest.mark.parametrize(
    ("production", "command"),
    [(FIRST, CHECK), (LAST, CHECK), (LAST, "-m celery report"), (LAST, GUNICORN), (LAST, PYTEST)],
    ids=["check, yours first", "check, yours last", "celery", "gunicorn", "pytest"],
)
def test_a_project_with_a_settings_package_needs_three_names(
    tmp_path: Path, production: str, command: str
) -> None:
    queues = f"QUEUES = {settings.QUEUES}\n"
    for name, text in {**FILES, "settings/production.py": production + queues}.items():
        file = tmp_path / NAME / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    names = {
        "DJANGO_SETTINGS_MODULE": f"{NAME}.settings.production",
        "CELERY_APP": NAME,
        "UVICORN_APP": f"{NAME}.asgi:application",
        "PYTHONPATH": f"{tmp_path}:{PROJECT}",
    }
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env=os.environ | names,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
