from datetime import timedelta
from io import StringIO

import pytest
from django.core import mail
from django.core.management import call_command
from django.db import IntegrityError
from django.test import Client
from django.utils import timezone

from notifications.models import Notification, Subscription
from notifications.tasks import GIVE_UP, OVERDUE, send_notification, send_overdue
from posts.models import Post, Site
from stack.testing import wait_for

pytestmark = pytest.mark.django_db


@pytest.fixture
def note() -> Notification:
    """A mail that is not sent yet."""
    site = Site.objects.create(url="http://localhost/")
    post = Post.objects.create(site=site, key="1", url="http://localhost/1", title="A post")
    return Notification.objects.create(
        post=post, subscription=Subscription.objects.create(email="a@localhost")
    )


@pytest.mark.parametrize(
    ("keywords", "wanted"),
    [("", True), (" , ", True), ("celery", True), ("x, RETRY,", True), ("x", False)],
)
def test_a_subscriber_gets_what_has_a_keyword(keywords: str, wanted: bool) -> None:
    assert Subscription(keywords=keywords).wants(Post(title="Celery: retry")) is wanted


def test_a_mail_is_sent_once_however_often_its_task_runs(note: Notification) -> None:
    assert send_notification(note.pk) == "sent"
    assert send_notification(note.pk).startswith("Nothing to do")
    (message,) = mail.outbox
    assert (message.to, message.subject) == (["a@localhost"], "A post")
    assert "http://localhost/1" in message.body


def test_the_database_takes_no_second_mail_for_a_subscriber_and_post(note: Notification) -> None:
    with pytest.raises(IntegrityError):
        Notification.objects.create(post=note.post, subscription=note.subscription)


def test_a_mail_that_failed_is_sent_later_with_the_same_id(note: Notification, settings) -> None:
    mailers = settings.MAILERS
    options = {"host": "localhost", "port": 1}
    smtp = "django.core.mail.backends.smtp.EmailBackend"
    settings.MAILERS = {"default": {"BACKEND": smtp, "OPTIONS": options}}
    with pytest.raises(ConnectionRefusedError):
        send_notification(note.pk)
    note.refresh_from_db()
    assert note.sent_at is None
    settings.MAILERS = mailers
    send_notification(note.pk)
    Notification.objects.update(sent_at=None)
    send_notification(note.pk)
    assert len({message.extra_headers["Message-ID"] for message in mail.outbox}) == 1


def test_a_mail_whose_subscriber_is_gone_is_not_sent(note: Notification) -> None:
    note.subscription.delete()
    assert send_notification(note.pk).startswith("Nothing to do")
    assert mail.outbox == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("age", "sent", "mails"),
    [
        (OVERDUE - timedelta(minutes=1), False, 0),
        (OVERDUE + timedelta(minutes=1), False, 1),
        (OVERDUE + timedelta(minutes=1), True, 0),
        (GIVE_UP + timedelta(minutes=1), False, 0),
    ],
)
def test_a_lost_task_is_replaced(
    note: Notification, worker, age: timedelta, sent: bool, mails: int
) -> None:
    now = timezone.now()
    Notification.objects.update(created_at=now - age, sent_at=now if sent else None)
    send_overdue.delay().get(timeout=120)
    # A task that is sent after them shows that they are done.
    other = Notification.objects.create(
        post=Post.objects.create(site=note.post.site, key="2", title="Last"),
        subscription=note.subscription,
    )
    send_notification.delay(other.pk).get(timeout=120)
    wait_for(lambda: len(mail.outbox) > mails)
    assert len(mail.outbox) == mails + 1


def test_the_admin_shows_what_waits(note: Notification, admin_client: Client) -> None:
    page = admin_client.get("/admin/notifications/notification/?sent_at__isempty=1")
    assert "A post" in page.content.decode()
    assert admin_client.get("/admin/notifications/notification/add/").status_code == 403


def test_the_sample_site_is_added_once() -> None:
    call_command("add_sample_site")
    assert Site.objects.count() == 2
    assert Subscription.objects.count() == 1
    Site.objects.all()[0].delete()
    call_command("add_sample_site", stdout=StringIO())
    assert Site.objects.count() == 1
