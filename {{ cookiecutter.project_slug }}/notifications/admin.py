from django.contrib import admin
from django.http import HttpRequest

from .models import Notification, Subscription


@admin.register(Subscription)
class SubscriptionAdmin(admin.ModelAdmin):
    """Who hears of what."""

    list_display = ["email", "keywords"]
    list_filter = [("keywords", admin.EmptyFieldListFilter)]
    search_fields = ["email", "keywords"]


@admin.register(Notification)
class NotificationAdmin(admin.ModelAdmin):
    """What was sent to whom, and what waits; only tasks write here."""

    list_display = ["post", "subscription", "created_at", "sent_at"]
    list_filter = [("sent_at", admin.EmptyFieldListFilter), "subscription"]
    list_select_related = ["post", "subscription"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Only a crawl adds them."""
        return False

    def has_change_permission(self, request: HttpRequest, note: Notification | None = None) -> bool:
        """Only a task changes them."""
        return False
