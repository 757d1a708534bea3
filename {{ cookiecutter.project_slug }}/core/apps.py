from django.apps import AppConfig


class CoreConfig(AppConfig):
    """What every project of this kind has: health, the check of the queues, the log, a sample task."""

    name = "core"

    def ready(self) -> None:
        """Register the system check."""
        from . import checks  # noqa: F401
