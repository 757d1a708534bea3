from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand

from stack.environment import env


class Command(BaseCommand):
    help = (
        "Create the superuser of DJANGO_SUPERUSER_USERNAME, _EMAIL and _PASSWORD unless there is one"
        " of that name. What else the user model requires is read as DJANGO_SUPERUSER_<FIELD>."
    )

    def handle(self, *args: object, **options: object) -> None:
        """Leave an existing user, and its password, as they are."""
        model = get_user_model()
        field = model.USERNAME_FIELD
        name = env(f"DJANGO_SUPERUSER_{field.upper()}", default="")
        try:
            if not model._default_manager.filter(**{field: name}).exists():
                call_command("createsuperuser", interactive=False)
        except Exception as error:  # a project's model may have any rule
            self.stderr.write(
                f"There is no superuser yet ({error}). To create one:\n"
                "docker compose run --rm web ./manage.py createsuperuser"
            )
