from django.contrib.auth.models import AbstractUser


class User(AbstractUser):
    """
    The users of this project. Add fields whenever you need them.

    Django cannot replace its own user model later:
    https://docs.djangoproject.com/en/6.1/topics/auth/customizing/#using-a-custom-user-model-when-starting-a-project
    """
