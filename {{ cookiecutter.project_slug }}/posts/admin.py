from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from kombu.exceptions import OperationalError

from .models import Post, Site
from .tasks import crawl_site


@admin.register(Site)
class SiteAdmin(admin.ModelAdmin):
    """The sites, and the action that crawls some of them now."""

    list_display = ["url", "kind", "crawled_at", "error"]
    list_filter = ["kind", ("error", admin.EmptyFieldListFilter)]
    search_fields = ["url"]
    readonly_fields = ["crawled_at", "error"]
    actions = ["crawl_now"]

    @admin.action(description="Crawl now", permissions=["change"])
    def crawl_now(self, request: HttpRequest, sites: QuerySet[Site]) -> None:
        """Send a task for each chosen site."""
        try:
            for site in sites:
                crawl_site.delay(site.pk)
        except OperationalError:
            error = "The broker does not answer, so not all were sent. Try again in a minute."
            self.message_user(request, error, messages.ERROR)
        else:
            self.message_user(request, f"Sites that are crawled now: {len(sites)}.")


@admin.register(Post)
class PostAdmin(admin.ModelAdmin):
    """What was found; nobody writes posts here."""

    list_display = ["title", "site", "found_at"]
    list_filter = ["site", "found_at"]
    list_select_related = ["site"]
    search_fields = ["title"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Only a crawl adds posts."""
        return False

    def has_change_permission(self, request: HttpRequest, post: Post | None = None) -> bool:
        """Only a site changes posts."""
        return False
