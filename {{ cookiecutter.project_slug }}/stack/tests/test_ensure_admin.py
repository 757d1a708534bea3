"""The superuser of .env, with the user models that projects have."""

import subprocess
import sys
from pathlib import Path

import pytest

from stack.checks import PROJECT

# In a process and a database of its own, because a user model cannot be changed.
MODELS = """
import os
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import models


class People(BaseUserManager):
    def create_superuser(self, email, password, **fields):
        if "locked" in email:
            raise ValueError("Ask the board")
        person = self.model(email=email, **fields)
        person.set_password(password)
        person.save()


class Person(AbstractBaseUser):
    email = models.EmailField(unique=True)
    city = models.TextField()
    objects = People()
    USERNAME_FIELD = "email"
    REQUIRED_FIELDS = os.environ["REQUIRED"].split()
"""
RUN = """
import django
from django.conf import settings
from django.core.management import call_command
settings.configure(
    AUTH_USER_MODEL="people.Person",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "people", "stack"],
)
django.setup()
call_command("migrate", run_syncdb=True, verbosity=0)
for _ in range(2):
    call_command("ensure_admin")
from people.models import Person
print(*((person.email, person.city, person.check_password("secret")) for person in Person.objects.all()))
"""
ADMIN = {"USERNAME": "admin", "EMAIL": "jane@mail.test", "PASSWORD": "secret"}


def ensure_admin(folder: Path, required: str = "", **changed: str) -> tuple[str, str]:
    """Run the command twice where an email is the name; return the users and what is on stderr."""
    (folder / "people").mkdir()
    (folder / "people/__init__.py").touch()
    (folder / "people/models.py").write_text(MODELS)
    names = {f"DJANGO_SUPERUSER_{name}": value for name, value in (ADMIN | changed).items()}
    path = {"PYTHONPATH": f"{folder}:{PROJECT}"}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env=names | path | {"REQUIRED": required},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1], done.stderr


@pytest.mark.parametrize(("required", "city"), [("", ""), ("city", "Oslo")])
def test_the_fields_that_the_model_requires_are_read(
    tmp_path: Path, required: str, city: str
) -> None:
    users = f"('jane@mail.test', '{city}', True)"
    assert ensure_admin(
        tmp_path, required, **{name.upper(): city for name in required.split()}
    ) == (users, "")


@pytest.mark.parametrize(
    ("required", "email", "why"),
    [
        ("city", "jane@mail.test", "You must use --city"),
        ("", "", "Email cannot be blank."),
        ("", "locked@mail.test", "Ask the board"),
    ],
)
def test_a_model_with_other_rules_ends_in_a_warning(
    tmp_path: Path, required: str, email: str, why: str
) -> None:
    users, warning = ensure_admin(tmp_path, required, EMAIL=email)
    assert users == ""
    assert f"There is no superuser yet ({why}" in warning
    assert "docker compose run --rm web ./manage.py createsuperuser\n" in warning
