"""
Read the posts of a site, politely and safely; without tasks and database.

The HTTP client is Tornado's, which Flower brings anyway: it bounds time and size, and its resolver
can be replaced, so that what was checked is what is connected to.
"""

import asyncio
import io
import json
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit
from urllib.robotparser import RobotFileParser

from django.conf import settings
from django.utils.html import strip_tags
from tornado.httpclient import HTTPClientError, HTTPResponse
from tornado.netutil import DefaultLoopResolver
from tornado.simple_httpclient import HTTPStreamClosedError, SimpleAsyncHTTPClient

AGENT = "{{ cookiecutter.project_slug }}"
TIMEOUT = 30  # seconds for all requests of one crawl
LARGEST = 1024 * 1024  # bytes of an answer, unpacked
REDIRECTS = 5
POSTS = 100  # of one answer
LENGTH = 500  # characters of a key, an address or a title

# They hold an IPv4 address, which might be a private one: NAT64 and 6to4.
TUNNELS = [ip_network("64:ff9b::/96"), ip_network("2002::/16")]


class CrawlError(Exception):
    """The site cannot be crawled, and trying again soon would not help."""


class Unreachable(CrawlError):
    """The site cannot be crawled right now."""


class Entry(NamedTuple):
    """A post as a site has it: `key` is its id on the site."""

    key: str
    url: str
    title: str


class PublicResolver(DefaultLoopResolver):
    """
    Refuses hosts with a private address, unless settings.CRAWL_PRIVATE_HOSTS names them.

    A user who may add a site could otherwise read what only this network should reach (SSRF). Every
    connection goes to the addresses that were checked here, also after a redirect, so that another
    answer of the DNS a moment later (rebinding) changes nothing.
    https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html
    """

    async def resolve(self, host: str, port: int, *family: Any) -> list[tuple[int, Any]]:
        """Return the addresses of `host`; raise CrawlError when one of them is private."""
        addresses = await super().resolve(host, port, *family)
        if host not in settings.CRAWL_PRIVATE_HOSTS:
            for _, (address, *_) in addresses:
                if not is_public(address):
                    raise CrawlError(f"{host} has the private address {address}.")
        return addresses


def is_public(address: str) -> bool:
    """Return whether anybody on the internet has this IP address."""
    ip = ip_address(address)
    return ip.is_global and not ip.is_multicast and not any(ip in tunnel for tunnel in TUNNELS)


def read(url: str, kind: str) -> list[Entry]:
    """Fetch the posts at `url`, which is of that Site.Kind; raise CrawlError or Unreachable."""
    body = asyncio.run(download(url))
    found = {entry.key: entry for entry in PARSERS[kind](body, url) if entry.key}
    return list(found.values())[:POSTS]


async def download(url: str) -> bytes:
    """Fetch `url`, if its robots.txt allows that."""
    client = SimpleAsyncHTTPClient(
        force_instance=True, max_body_size=LARGEST, resolver=PublicResolver()
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            answer = await get(client, url)
    except TimeoutError as error:
        raise Unreachable(f"{url} takes longer than {TIMEOUT} s.") from error
    except ValueError as error:  # some redirect leads to what is not http, or no address at all
        raise CrawlError(f"{url} cannot be fetched: {error}.") from error
    finally:
        client.close()
    if answer.code != 200:
        raise CrawlError(f"{url} answers {answer.code} {answer.reason}.")
    return answer.body


async def get(
    client: SimpleAsyncHTTPClient, url: str, redirects: int = REDIRECTS, polite: bool = True
) -> HTTPResponse:
    """GET `url` and follow its redirects, asking the robots.txt of each host if `polite`."""
    if polite and not await is_allowed(client, url):
        raise CrawlError(f"The site's robots.txt forbids {url}.")
    try:
        answer = await client.fetch(
            url,
            raise_error=False,
            follow_redirects=False,
            connect_timeout=5,
            request_timeout=10,
            user_agent=f"{AGENT} ({settings.DEFAULT_FROM_EMAIL})",
        )
    except HTTPStreamClosedError as error:
        raise Unreachable(f"{url} breaks off, or has more than {LARGEST} bytes.") from error
    except (OSError, HTTPClientError) as error:
        raise Unreachable(f"{url} does not answer: {error}.") from error
    if answer.code >= 500 or answer.code == 429:
        raise Unreachable(f"{url} answers {answer.code} {answer.reason}.")
    if answer.code in (301, 302, 303, 307, 308) and "Location" in answer.headers:
        if not redirects:
            raise CrawlError(f"{url} redirects once more, after {REDIRECTS} redirects.")
        return await get(client, urljoin(url, answer.headers["Location"]), redirects - 1, polite)
    return answer


async def is_allowed(client: SimpleAsyncHTTPClient, url: str) -> bool:
    """Raise unless robots.txt allows it; without one everything is allowed (RFC 9309)."""
    answer = await get(client, urljoin(url, "/robots.txt"), polite=False)
    robots = RobotFileParser()
    robots.parse(answer.body.decode(errors="replace").splitlines() if answer.code == 200 else [])
    return robots.can_fetch(AGENT, url)


def parse_feed(body: bytes, base: str) -> Iterable[Entry]:
    """Read RSS or Atom."""
    import feedparser  # here: whatever else imports this module does not need its 2 MB

    # A file, because feedparser would fetch or open what a string names.
    feed = feedparser.parse(io.BytesIO(body))
    if not feed.get("version"):
        raise CrawlError(f"{base} is no RSS and no Atom.")
    for item in feed.entries:
        link = item.get("link")
        yield entry(base, item.get("id") or link, link, strip_tags(item.get("title") or ""))


def parse_json_feed(body: bytes, base: str) -> Iterable[Entry]:
    """Read a JSON Feed: https://www.jsonfeed.org/version/1.1/"""
    try:
        for item in json.loads(body)["items"]:
            yield entry(base, item["id"], item.get("url"), item.get("title"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CrawlError(f"{base} is no JSON Feed.") from error


def entry(base: str, key: object, link: object, title: object) -> Entry:
    """Make an entry of what a site wrote; one without a good link links to the site."""
    try:
        url = urljoin(base, clean(link))
        if urlsplit(url).scheme not in ("http", "https") or len(url) > LENGTH:
            url = base
    except ValueError:
        url = base
    return Entry(clean(key), url, clean(title) or url)


def clean(value: object) -> str:
    """Make one line of `value`, which mails and the database can take."""
    text = str(value or "").encode(errors="ignore").decode().replace("\0", "")
    return " ".join(text.split())[:LENGTH]


PARSERS: dict[str, Callable[[bytes, str], Iterable[Entry]]] = {
    "feed": parse_feed,
    "json": parse_json_feed,
}
