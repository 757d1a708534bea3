"""
Finding posts, on the queue "crawl".

Any of these may run twice, or again after it was killed: the second run finds what the first one
did, and does the rest.
"""

from celery import shared_task
from django.db import transaction
from django.utils import timezone

from notifications.tasks import announce

from .crawler import TIMEOUT, CrawlError, Entry, Unreachable, read
from .models import Post, Site


@shared_task
def crawl_sites() -> None:
    """Send a task for each site, so that a slow site does not delay the others; beat sends this one."""
    for site_id in Site.objects.values_list("pk", flat=True):
        crawl_site.delay(site_id)


@shared_task(
    soft_time_limit=TIMEOUT + 15,
    rate_limit="10/s",
    # A second time after up to 4 s, then 8, 16 and 32 s: over before beat sends the next one.
    # https://docs.celeryq.dev/en/stable/userguide/tasks.html#automatic-retry-for-known-exceptions
    autoretry_for=(Unreachable,),
    max_retries=4,
    retry_backoff=4,
    retry_jitter=True,
)
def crawl_site(site_id: int) -> str:
    """Store the new posts of a site and announce them; return how many, in words."""
    site = Site.objects.filter(pk=site_id).first()
    if site is None:
        return "The site was deleted."
    try:
        found = read(site.url, site.kind)
    except CrawlError as error:
        Site.objects.filter(pk=site_id).update(error=str(error)[:500])
        if isinstance(error, Unreachable):
            raise
        return str(error)
    return f"{store(site_id, found)} new posts"


def store(site_id: int, found: list[Entry]) -> int:
    """Store those that are new, with a mail for each subscriber; return how many there were."""
    with transaction.atomic():
        # Two crawls of one site do this one after the other, so the second finds nothing new.
        site = Site.objects.select_for_update().filter(pk=site_id).first()
        if site is None:
            return 0
        known = set(
            site.posts.filter(key__in=[one.key for one in found]).values_list("key", flat=True)
        )
        new = Post.objects.bulk_create(
            Post(site=site, **one._asdict()) for one in found if one.key not in known
        )
        announce(new)
        site.crawled_at, site.error = timezone.now(), ""
        site.save(update_fields=["crawled_at", "error"])
    return len(new)
