import time
from datetime import timedelta

from celery import shared_task
from django.db import DEFAULT_DB_ALIAS
from django.utils import timezone

from .models import Message

OVERDUE = timedelta(minutes=1)
# Seconds after which the rest is left to the next run, which beat sends every minute.
ENOUGH = 50


@shared_task
def send_overdue(using: str = DEFAULT_DB_ALIAS) -> None:
    """Send the tasks that have been in the outbox for more than a minute, the oldest first."""
    end = time.monotonic() + ENOUGH
    overdue = Message.objects.using(using).filter(created_at__lt=timezone.now() - OVERDUE)
    for message in overdue.iterator():
        message.send()
        if time.monotonic() > end:
            break
