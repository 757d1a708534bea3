from django.contrib import admin
from django.http import HttpRequest

from .models import Message


@admin.register(Message)
class MessageAdmin(admin.ModelAdmin):
    """What waits in the outbox: to be looked at, and deleted when it is not to be sent."""

    list_display = ["name", "task_id", "created_at"]
    list_filter = ["name"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Only a transaction adds them."""
        return False

    def has_change_permission(self, request: HttpRequest, message: Message | None = None) -> bool:
        """No one changes them."""
        return False
