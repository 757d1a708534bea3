from django.apps import AppConfig

from .environment import env


class StackConfig(AppConfig):
    """The system checks, the management commands and the tasks of the stack."""

    name = "stack"

    def ready(self) -> None:
        """Register the system checks; trace requests and tasks when .env says where to."""
        from . import checks  # noqa: F401

        if env("OTEL_EXPORTER_OTLP_ENDPOINT", default=""):
            from . import telemetry

            telemetry.start()
