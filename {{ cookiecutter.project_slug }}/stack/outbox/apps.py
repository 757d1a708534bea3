from django.apps import AppConfig


class OutboxConfig(AppConfig):
    """Tasks that are stored with the transaction, and sent even if the broker is unavailable."""

    name = "stack.outbox"
    label = "stack_outbox"  # "outbox" is left to the project
    default_auto_field = "django.db.models.BigAutoField"
