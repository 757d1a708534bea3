"""The superuser of .env, with the user models that projects have."""

import subprocess
import sys

import pytest

# In a process and a database of its own, because the user model cannot change.
RUN = """
import sys
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "stack"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    AUTH_USER_MODEL="stack.Person",
)
import django
django.setup()
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.core.management import call_command
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
    REQUIRED_FIELDS = sys.argv[1:]
    class Meta:
        app_label = "stack"

call_command("migrate", run_syncdb=True, verbosity=0)
for _ in range(2):
    call_command("ensure_admin")
print(*((person.email, person.city, person.check_password("secret")) for person in Person.objects.all()))
"""


def ensure_admin(*required: str, **environment: str) -> tuple[str, str]:
    """Run the command twice for a model with an email as the name; return the users and the warning."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *required],
        env={f"DJANGO_SUPERUSER_{name}": value for name, value in environment.items()},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1], done.stderr


@pytest.fixture
def admin() -> dict[str, str]:
    """Return what .env says, without the prefix."""
    return {"USERNAME": "admin", "EMAIL": "jane@example.com", "PASSWORD": "secret"}


def test_the_field_of_the_name_and_those_that_are_required_are_read(admin: dict[str, str]) -> None:
    users, warning = ensure_admin(**admin)
    assert (users, warning) == ("('jane@example.com', '', True)", "")
    users, warning = ensure_admin("city", **admin, CITY="Oslo")
    assert (users, warning) == ("('jane@example.com', 'Oslo', True)", "")


@pytest.mark.parametrize(
    ("required", "changed", "why"),
    [
        (["city"], {}, "You must use --city with --no-input."),
        ([], {"EMAIL": ""}, "You must use --email with --no-input."),
        ([], {"EMAIL": "locked@example.com"}, "Ask the board"),
    ],
)
def test_a_model_with_other_rules_ends_in_a_warning(
    admin: dict[str, str], required: list[str], changed: dict[str, str], why: str
) -> None:
    users, warning = ensure_admin(*required, **admin | changed)
    assert users == ""
    assert f"There is no superuser yet ({why})" in warning
    assert "docker compose run --rm web ./manage.py createsuperuser" in warning
