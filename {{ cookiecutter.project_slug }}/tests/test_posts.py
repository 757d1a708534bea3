import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from celery import current_app
from django.test import Client

from notifications.models import Notification, Subscription
from posts import crawler
from posts.crawler import Unreachable, is_public
from posts.models import Post, Site
from posts.tasks import crawl_site, crawl_sites
from stack.testing import wait_for

pytestmark = pytest.mark.django_db


class Web:
    """A web server on this machine: `pages` has body and status by path, `seen` what was asked."""

    def __init__(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        self.pages: dict[str, Callable[[], tuple[int, bytes, dict[str, str]]]] = {}
        self.seen: list[str] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.seen.append(self.path)
                status, body, headers = web.pages.get(self.path, lambda: (404, b"", {}))()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # It looks whether it shall end every 10 ms, instead of 500.
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """Return the address of a path."""
        return f"http://{host}:{self.server.server_port}{path}"

    def show(self, path: str, body: bytes = b"", status: int = 200, **headers: str) -> None:
        """Answer with this from now on."""
        self.pages[path] = lambda: (status, body, headers)


@pytest.fixture
def web(settings) -> Iterator[Web]:
    """A site whose private address may be crawled, under the host 127.0.0.1 alone."""
    settings.CRAWL_PRIVATE_HOSTS = ["127.0.0.1"]
    web = Web()
    yield web
    web.server.shutdown()
    web.server.server_close()


def rss(*titles: str) -> bytes:
    """Write a feed."""
    items = "".join(f"<item><guid>{t}</guid><title>{t}</title></item>" for t in titles)
    return f'<rss version="2.0"><channel><title>x</title>{items}</channel></rss>'.encode()


def site(url: str, kind: str = Site.Kind.FEED) -> Site:
    """Add a site."""
    return Site.objects.create(url=url, kind=kind)


def error(url: str, kind: str = Site.Kind.FEED) -> str:
    """Crawl a new site that cannot be crawled; give what the admin shows of that."""
    added = site(url, kind)
    crawl_site(added.pk)
    added.refresh_from_db()
    assert added.crawled_at is None
    assert Post.objects.count() == 0
    return added.error


def test_a_crawl_done_twice_changes_nothing(web: Web) -> None:
    Subscription.objects.create(email="a@localhost")
    web.show("/feed", rss("one", "two", "one"))
    added = site(web.url("/feed"))
    assert [crawl_site(added.pk) for _ in range(2)] == ["2 new posts", "0 new posts"]
    assert sorted(Post.objects.values_list("title", flat=True)) == ["one", "two"]
    assert Notification.objects.count() == 2


def test_what_is_new_is_added_for_those_who_want_it(web: Web) -> None:
    Subscription.objects.create(email="a@localhost", keywords="TWO")
    web.show("/feed", rss("one"))
    added = site(web.url("/feed"))
    crawl_site(added.pk)
    web.show("/feed", rss("one", "two"))
    assert crawl_site(added.pk) == "1 new posts"
    assert [note.post.title for note in Notification.objects.all()] == ["two"]


def test_a_json_feed_is_read(web: Web) -> None:
    items = [
        {"id": 1, "title": "one\0\n line", "url": "/1"},
        {"id": "2", "url": "javascript:alert(1)"},
        {"id": ""},
    ]
    web.show("/feed", json.dumps({"items": items}).encode())
    crawl_site(site(web.url("/feed"), Site.Kind.JSON).pk)
    found = {post.key: (post.title, post.url) for post in Post.objects.all()}
    assert found == {
        "1": ("one line", web.url("/1")),
        "2": (web.url("/feed"), web.url("/feed")),
    }


@pytest.mark.parametrize("body", [b"", b"[]", b'{"items": 3}', b"[" * 100_000, b'"\xff'])
def test_what_is_no_json_feed_is_an_error(web: Web, body: bytes) -> None:
    web.show("/feed", body)
    assert error(web.url("/feed"), Site.Kind.JSON).endswith("is no JSON Feed.")


@pytest.mark.parametrize("body", [b"", b"<html>", b"/etc/passwd", b"http://localhost/"])
def test_what_is_no_feed_is_an_error(web: Web, body: bytes) -> None:
    web.show("/feed", body)
    assert error(web.url("/feed")).endswith("is no RSS and no Atom.")


def test_a_site_that_was_deleted_is_no_error() -> None:
    assert crawl_site(0) == "The site was deleted."


# A polite crawler ---------------------------------------------------------------------------------


def test_robots_txt_is_respected(web: Web) -> None:
    web.show("/robots.txt", b"User-agent: *\nDisallow: /feed\n")
    web.show("/feed", rss("one"))
    assert "robots.txt forbids" in error(web.url("/feed"))
    assert web.seen == ["/robots.txt"]


def test_robots_txt_is_respected_after_a_redirect(web: Web) -> None:
    web.show("/robots.txt", b"User-agent: *\nDisallow: /feed\n")
    web.show("/old", status=301, Location="/feed")
    assert "robots.txt forbids" in error(web.url("/old"))
    assert "/feed" not in web.seen


def test_while_robots_txt_cannot_be_read_nothing_else_is(web: Web) -> None:
    web.show("/robots.txt", status=503)
    with pytest.raises(Unreachable, match="503"):
        crawl_site(site(web.url("/feed")).pk)
    assert "503" in Site.objects.get().error
    assert web.seen == ["/robots.txt"]


# A careful crawler --------------------------------------------------------------------------------


PUBLIC = ["9.9.9.9", "2620:fe::fe"]
PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "172.18.0.2", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("0.0.0.0", "224.0.0.1", "::1", "::", "fe80::1", "fd00::1", "ff02::1"),  # noqa: S104
    *("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::"),
]


@pytest.mark.parametrize("address", PUBLIC + PRIVATE)
def test_an_address_is_public_or_private(address: str) -> None:
    assert is_public(address) is (address in PUBLIC)


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f000001", "2130706433", "[::1]"])
def test_a_site_with_a_private_address_is_refused(web: Web, host: str) -> None:
    assert "has the private address" in error(web.url("/feed", host))
    assert web.seen == []


def test_a_redirect_to_a_private_address_is_refused(web: Web) -> None:
    web.show("/feed", status=302, Location=web.url("/secret", "localhost"))
    assert "localhost has the private address" in error(web.url("/feed"))
    assert web.seen == ["/robots.txt", "/feed"]


def test_a_connection_goes_to_the_address_that_was_checked(web: Web, monkeypatch) -> None:
    asked, real = [], socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> list:
        asked.append(host)
        # The same name stands for another address each time, as in DNS rebinding.
        return real("127.0.0.1" if len(asked) < 3 else "10.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(crawler, "is_public", "127.0.0.1".__eq__)
    web.show("/feed", rss("one"))
    assert crawl_site(site(web.url("/feed", "rebind.test")).pk) == "1 new posts"
    assert asked == ["rebind.test"] * 2  # one for each request: nobody asked again to connect
    web.show("/feed", status=301, Location="/other")
    assert "has the private address 10.0.0.1" in error_again()


def error_again() -> str:
    """Crawl the only site once more; give what the admin shows."""
    only = Site.objects.get()
    crawl_site(only.pk)
    only.refresh_from_db()
    return only.error


def test_redirects_are_followed_but_not_for_ever(web: Web) -> None:
    web.show("/old", status=308, Location="/feed")
    web.show("/feed", rss("one"))
    assert crawl_site(site(web.url("/old")).pk) == "1 new posts"
    web.show("/feed", status=302, Location="/feed")
    assert "redirects once more" in error_again()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://[bad"])
def test_only_http_is_followed(web: Web, target: str) -> None:
    web.show("/feed", status=302, Location=target)
    assert "cannot be fetched" in error(web.url("/feed"))


def test_an_answer_that_is_too_large_is_cut_off(web: Web, monkeypatch) -> None:
    monkeypatch.setattr(crawler, "LARGEST", 10_000)
    web.show("/feed", rss("x" * 20_000))
    with pytest.raises(Unreachable):
        crawl_site(site(web.url("/feed")).pk)
    web.show("/feed", rss("x" * 2_000))
    assert crawl_site(Site.objects.get().pk) == "1 new posts"


def test_an_answer_that_takes_too_long_is_given_up(web: Web, monkeypatch) -> None:
    monkeypatch.setattr(crawler, "TIMEOUT", 0.5)

    def slow() -> tuple[int, bytes, dict[str, str]]:
        time.sleep(1)
        return 200, rss("one"), {}

    web.pages["/feed"] = slow
    with pytest.raises(Unreachable, match="takes longer"):
        crawl_site(site(web.url("/feed")).pk)


def test_a_page_that_is_gone_is_an_error(web: Web) -> None:
    assert error(web.url("/feed")).endswith("answers 404 Not Found.")


# On the queue -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "queue"),
    [("posts.tasks.crawl_site", "crawl"), ("notifications.tasks.send_notification", "notify")],
)
def test_each_kind_of_work_has_its_queue(task: str, queue: str) -> None:
    assert current_app.amqp.router.route({}, task)["queue"].name == queue


@pytest.mark.django_db(transaction=True)
def test_a_site_that_fails_is_tried_again(web: Web, worker) -> None:
    answers: list[tuple[int, bytes, dict[str, str]]] = [(503, b"", {}), (200, rss("one"), {})]
    web.pages["/feed"] = lambda: answers.pop(0)
    task = crawl_site.delay(site(web.url("/feed")).pk)
    assert task.get(timeout=120) == "1 new posts"
    assert Site.objects.get().error == ""


@pytest.mark.django_db(transaction=True)
def test_beat_has_every_site_crawled(web: Web, worker) -> None:
    for path in ("/a", "/b"):
        web.show(path, rss(path))
        site(web.url(path))
    crawl_sites.delay()
    wait_for(lambda: Post.objects.count() == 2)


@pytest.mark.django_db(transaction=True)
def test_the_admin_has_the_chosen_sites_crawled_now(web: Web, worker, admin_client: Client) -> None:
    web.show("/a", rss("one"))
    chosen, other = site(web.url("/a")), site(web.url("/b"))
    answer = admin_client.post(
        "/admin/posts/site/", {"action": "crawl_now", "_selected_action": [chosen.pk]}, follow=True
    )
    assert "Sites that are crawled now: 1." in answer.content.decode()
    wait_for(lambda: Post.objects.count() == 1)
    other.refresh_from_db()
    assert (other.crawled_at, other.error) == (None, "")


def test_the_admin_shows_posts_and_lets_nobody_write_them(web: Web, admin_client: Client) -> None:
    web.show("/a", rss("one"))
    crawl_site(site(web.url("/a")).pk)
    assert "one" in admin_client.get("/admin/posts/post/").content.decode()
    assert admin_client.get(f"/admin/posts/post/{Post.objects.get().pk}/change/").status_code == 200
    assert admin_client.get("/admin/posts/post/add/").status_code == 403
