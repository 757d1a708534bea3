from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand

from stack.environment import env


class Command(BaseCommand):
    help = (
        "Create the superuser of DJANGO_SUPERUSER_USERNAME, _EMAIL and _PASSWORD"
        " unless there is one of that name."
    )

    def handle(self, *args: object, **options: object) -> None:
        """Leave an existing user, and its password, as they are."""
        users = get_user_model()._default_manager
        if not users.filter(username=env("DJANGO_SUPERUSER_USERNAME")).exists():
            call_command("createsuperuser", interactive=False)
