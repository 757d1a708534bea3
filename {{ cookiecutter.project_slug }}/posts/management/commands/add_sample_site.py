from django.core.management.base import BaseCommand
from django.db import transaction

from notifications.models import Subscription
from posts.models import Site
from stack.environment import env

SITES = {
    "http://sample-site:8000/news.xml": Site.Kind.FEED,
    "http://sample-site:8000/talks.json": Site.Kind.JSON,
}


class Command(BaseCommand):
    help = (
        "Add the two feeds of the sample site, and a subscription of DJANGO_SUPERUSER_EMAIL,"
        " unless there are sites already."
    )

    def handle(self, *args: object, **options: object) -> None:
        """Leave everything as it is when there is a site."""
        if Site.objects.exists():
            return
        with transaction.atomic():
            for url, kind in SITES.items():
                Site.objects.get_or_create(url=url, defaults={"kind": kind})
            Subscription.objects.get_or_create(email=env("DJANGO_SUPERUSER_EMAIL"))
