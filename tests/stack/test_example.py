"""The example, in production: sites are crawled on one queue, mails sent on another."""

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from docker.models.containers import Container

from tests.faults.helpers import main_process

from .stack import Stack, wait_for

NEWS = "http://sample-site:8000/news.xml"
TITLES = [
    "Celery: retry with backoff and jitter",
    "Django: run a function once the transaction is committed",
    "PostgreSQL: locking the row that you change",
    "Testing Django with a real database",
    "Which task goes to which queue",
]
MODELS = "from notifications.models import *; from posts.models import *;"
TASKS = "from notifications.tasks import *; from posts.tasks import *;"


@pytest.fixture(scope="module")
def mail(production: Stack) -> Iterator[Container]:
    """The mail server that the stack's .env names."""
    tag = f"{production.slug}-mail"
    production.docker.images.build(rm=True, path=str(Path(__file__).parent / "mail"), tag=tag)
    container = production.docker.containers.create(tag, name=tag)
    try:
        network = production.docker.networks.get(f"{production.slug}_outside")
        network.connect(container, aliases=["mail"])
        container.start()
        yield container
    finally:
        container.remove(force=True)


@pytest.fixture(scope="module")
def example(production: Stack, mail: Container) -> Iterator[Stack]:
    """The stack with its sample site, set up as docs/example.md says, and two more subscribers."""
    # It would crawl the new sites too, every two minutes, perhaps before the test does.
    production.compose("stop", "beat")
    try:
        production.up("--no-deps", "sample-site")
        production.manage("add_sample_site")
        production.python(
            MODELS
            + "Subscription.objects.create(email='celery@example.com', keywords='CELERY, x');"
            "Subscription.objects.create(email='nothing@example.com', keywords='nothing like that')"
        )
        yield production
    finally:
        production.python(
            MODELS + "Site.objects.all().delete(); Subscription.objects.all().delete()"
        )
        production.compose("--profile", "sample", "rm", "--stop", "--force", "sample-site")
        production.compose("start", "beat")


def mails(container: Container) -> Counter[tuple[str, str]]:
    """Count the mails that the server took, by receiver and subject."""
    code = (
        "import json, mailbox;"
        "print(json.dumps([(m['To'], m['Subject']) for m in mailbox.Maildir('/tmp/mail')]))"
    )
    _, printed = container.exec_run(["python", "-c", code])
    return Counter(map(tuple, json.loads(printed)))


def crawl(stack: Stack, url: str) -> str:
    """Crawl a site, which is added if need be; give what its task tells."""
    return stack.python(
        f"{MODELS}{TASKS}site, _ = Site.objects.get_or_create(url={url!r});"
        "print(crawl_site.delay(site.pk).get(timeout=180))"
    )


def test_a_post_is_one_mail_for_each_who_wants_it_though_all_is_sent_twice_and_a_worker_dies(
    example: Stack, mail: Container
) -> None:
    mail.pause()  # it takes connections and says nothing
    try:
        example.python(TASKS + "[crawl_sites.delay() for _ in range(2)]")
        count = MODELS + "print(Notification.objects.count())"
        wait_for("the mails are noted", lambda: example.python(count) == "6")

        def started() -> str:
            return example.containers()["worker-notify"].attrs["State"]["StartedAt"]

        def running() -> list[dict]:
            return example.inspect("active")[f"notify@{example.slug}"]

        wait_for("both children wait for the mail server", lambda: len(running()) == 2)
        again = "[send_notification.delay(n.pk) for n in Notification.objects.all()]"
        example.python(MODELS + TASKS + again)
        before = started()
        os.kill(main_process(example, "worker-notify"), signal.SIGKILL)
        # Its children outlive it for a moment, in which they must not reach the mail server.
        wait_for("the worker starts again", lambda: started() != before)
    finally:
        mail.unpause()
    unsent = MODELS + "print(Notification.objects.filter(sent_at=None).count())"
    wait_for("all are sent", lambda: example.python(unsent) == "0")

    # Everything once more, to its end.
    example.python(
        f"{MODELS}{TASKS}tasks = [crawl_site.delay(s.pk) for s in Site.objects.all()] + {again};"
        "[task.get(timeout=180) for task in tasks]"
    )
    assert mails(mail) == {
        **{("admin@example.com", title): 1 for title in TITLES},
        ("celery@example.com", TITLES[0]): 1,
    }


def test_a_site_that_hangs_is_tried_again_and_then_given_up(example: Stack) -> None:
    site = example.containers()["sample-site"]
    site.pause()  # it takes connections and says nothing
    try:
        task = example.python(
            f"{MODELS}{TASKS}print(crawl_site.delay(Site.objects.get(url={NEWS!r}).pk).id)"
        )
        # Five times up to 10 s, and between them at most a minute.
        state = f"from config.celery import app; print(app.AsyncResult({task!r}).state)"
        wait_for("it tries again", lambda: example.python(state) == "RETRY")
        other = example.send("notify", steps=1)
        assert example.result(other) == f"Done by notify@{example.slug}."
        wait_for("it is given up", lambda: example.python(state) == "FAILURE")
    finally:
        site.unpause()
    error = example.python(f"{MODELS}print(Site.objects.get(url={NEWS!r}).error)")
    assert error.startswith("http://sample-site:8000/robots.txt does not answer: ")
    log = example.containers()["worker-crawl"].logs().decode().splitlines()
    lines = [json.loads(line) for line in log if f'"task_id": "{task}"' in line]
    assert [line["outcome"] for line in lines if "outcome" in line] == [*["retry"] * 4, "failed"]
    assert crawl(example, NEWS).endswith(" new posts")


def test_what_robots_txt_forbids_is_not_requested(example: Stack) -> None:
    told = crawl(example, "http://sample-site:8000/drafts/feed.xml")
    assert told == "The site's robots.txt forbids http://sample-site:8000/drafts/feed.xml."
    log = example.compose("logs", "sample-site")
    assert "GET /robots.txt" in log
    assert "/drafts/" not in log


@pytest.mark.parametrize(
    "address", ["broker:6379", "web-a:8000", "localhost:1", "169.254.169.254", "[::1]:1"]
)
def test_a_site_with_a_private_address_is_refused(example: Stack, address: str) -> None:
    assert "has the private address" in crawl(example, f"http://{address}/")


def test_staff_has_a_site_crawled_now(example: Stack) -> None:
    never = "Site.objects.filter(url=url).update(crawled_at=None)"
    site = example.python(
        f"{MODELS}from accounts.models import User;"
        "User.objects.create_superuser('editor', password='correct-horse-battery');"
        f"url = {NEWS!r}; {never}; print(Site.objects.get(url=url).pk)"
    )
    session = requests.Session()

    def submit(path: str, **form: str) -> requests.Response:
        page = session.get(example.url + path, timeout=60)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)[1]
        return session.post(page.url, data=form | {"csrfmiddlewaretoken": token}, timeout=60)

    submit("/admin/login/", username="editor", password="correct-horse-battery")
    answer = submit("/admin/posts/site/", action="crawl_now", _selected_action=site)
    assert "Sites that are crawled now: 1." in answer.text
    crawled = f"{MODELS}print(Site.objects.get(pk={site}).crawled_at)"
    wait_for("it was crawled", lambda: example.python(crawled) != "None")
