"""
Mails to subscribers about new posts, on the queue "notify".

A mail has a row in the database before it has a task. The row says whether it was sent, so any task
may be sent or run twice, and one that was lost is sent again.
"""

from collections.abc import Iterable
from datetime import timedelta
from email.utils import parseaddr

from celery import shared_task
from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.utils import timezone

from posts.models import Post

from .models import Notification, Subscription

OVERDUE = timedelta(minutes=10)
GIVE_UP = timedelta(days=1)


def announce(posts: Iterable[Post]) -> None:
    """Store each mail about new posts; call it in the transaction that stores them."""
    subscriptions = Subscription.objects.all()
    notes = Notification.objects.bulk_create(
        Notification(subscription=subscription, post=post)
        for post in posts
        for subscription in subscriptions
        if subscription.wants(post)
    )
    for note in notes:
        send_notification.delay_on_commit(note.pk)


@shared_task(
    soft_time_limit=60,
    rate_limit="10/s",
    autoretry_for=(OSError,),  # of the network, and all that a mail server refuses
    max_retries=5,
    retry_backoff=5,
    retry_jitter=True,
)
def send_notification(note_id: int) -> str:
    """
    Send one mail, unless that was done.

    Who comes second waits for the lock, and then finds the mail sent. One gap is left, which no
    program can close: a worker that dies after the mail server took the mail and before the
    database knows sends it again. Such a copy has the same Message-ID, by which many mailboxes
    show it once.
    """
    with transaction.atomic():
        unsent = Notification.objects.select_for_update(of=["self"]).filter(sent_at=None)
        note = unsent.select_related("subscription", "post").filter(pk=note_id).first()
        if note is None:
            return "Nothing to do: it was sent, or deleted."
        domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2]
        EmailMessage(
            note.post.title,
            f"{note.post.title}\n{note.post.url}\n",
            to=[note.subscription.email],
            headers={"Message-ID": f"<{note.created_at:%Y%m%d%H%M%S%f}.{note.pk}@{domain}>"},
        ).send()
        note.sent_at = timezone.now()
        note.save(update_fields=["sent_at"])
    return "sent"


@shared_task
def send_overdue() -> None:
    """Send another task for each mail that has waited for long, whatever happened to its first one."""
    now = timezone.now()
    overdue = Notification.objects.filter(
        sent_at=None, created_at__range=(now - GIVE_UP, now - OVERDUE)
    )
    for note_id in overdue.values_list("pk", flat=True):
        # Where the queue itself is slow, these do not pile up.
        send_notification.apply_async((note_id,), expires=OVERDUE.total_seconds())
