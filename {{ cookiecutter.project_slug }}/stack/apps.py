from django.apps import AppConfig


class StackConfig(AppConfig):
    """The system checks, the management commands and the tasks of the stack."""

    name = "stack"

    def ready(self) -> None:
        """Register the system checks."""
        from . import checks  # noqa: F401
