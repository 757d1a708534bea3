import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests import evidence
from tests.stack.stack import LAPTOP, PATIENCE, PRODUCTION, Stack

# Each group runs in one process and the longest begin first, so that none is waited for at the end.
LONGEST_FIRST = ["tests/swarm", "tests/vm", "laptop", "production", "tests/systemd"]
# The others by folder.
FOLDERS = [
    "tests/swarm",
    "tests/vm",
    "tests/systemd",
    "tests/faults",
    "tests/stack",
    "tests/template",
]


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin with which tests that fail explain themselves."""
    config.pluginmanager.register(evidence)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """
    Keep together, for pytest-xdist's loadgroup, what shares a stack; order the groups.

    The order comes last, because with "-p randomly" pytest-randomly shuffles all tests.

    What uses the browser is marked: chromium gives up what it loads whenever this machine gets
    another network, as with each stack that starts (net::ERR_NETWORK_CHANGED).
    """

    def folder(item: pytest.Item) -> str:
        return "/".join(item.nodeid.split("/")[:2])

    def rank(item: pytest.Item) -> tuple[int, int]:
        marker = item.get_closest_marker("xdist_group")
        assert marker
        group = marker.args[0]
        first = LONGEST_FIRST.index(group) if group in LONGEST_FIRST else len(LONGEST_FIRST)
        return first, FOLDERS.index(folder(item))

    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "page" in fixtures:
            item.add_marker("browser")
        stacks = fixtures.intersection({"production", "laptop"})
        if stacks:
            group = min(stacks)
        elif folder(item) in ("tests/faults", "tests/stack", "tests/template"):
            # A module that runs on each broker has a stack for each.
            parameters = item.nodeid.partition("[")[2].rstrip("]")
            broker = {"redis", "rabbitmq"}.intersection(parameters.split("-"))
            group = " ".join([item.nodeid.partition("::")[0], *broker])
        else:
            group = folder(item)
        item.add_marker(pytest.mark.xdist_group(group))
    yield
    items.sort(key=rank)


@pytest.fixture(scope="session")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack as a VM runs it, with a small app added the way its owner would add one."""
    stack = Stack(tmp_path_factory.mktemp("production"), PRODUCTION)
    try:
        stack.add_app(Path(__file__).parent / "stack" / "probe")
        stack.edit(
            "config/settings.py",
            "CELERY_BEAT_SCHEDULE = {\n",
            'PROBE_KEY = env("PROBE_KEY", default="")\n'
            'CELERY_BEAT_SCHEDULE = {\n    "tick": {"task": "probe.tasks.tick", "schedule": 2},\n',
        )
        # A volume that only backups see.
        stack.edit(
            "compose.yaml",
            "    profiles: [run]\n",
            '    profiles: [run]\n    volumes: ["media:/srv/media", "web-temp:/var/tmp", "private:/srv/private"]\n',
        )
        stack.edit("compose.yaml", "\nvolumes:\n", "\nvolumes:\n  private:\n")
        stack.set(BACKUP_PATHS="/srv/private/, ")
        stack.set(PROBE_KEY="a-secret-that-only-the-code-of-its-owner-needs")
        stack.set(COMPOSE_PROFILES="monitoring")
        # For test_example.py, which starts both.
        stack.set(EMAIL_HOST="mail", EMAIL_PORT=8025, EMAIL_USE_TLS="false")
        stack.set(CRAWL_PRIVATE_HOSTS="sample-site", UPLOAD_PATHS="/admin/,/probe/upload")
        stack.set(WORKER_CRAWL_CONCURRENCY=3, WORKER_TIME_LIMIT=200, WORKER_NOTIFY_TIME_LIMIT=100)
        stack.up("--build")
        yield stack
    finally:
        stack.remove()


@pytest.fixture(scope="session")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack as `docker compose up` starts it for a developer with the uid 4242."""
    stack = Stack(tmp_path_factory.mktemp("laptop"), LAPTOP)
    try:
        stack.up("--build")
        yield stack
    finally:
        stack.remove()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's chromium, or the one that is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    assert program, "The tests need chromium: run script/bootstrap --tests."
    flags = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=[*flags.split(), "--disable-sync"]
        )
        yield browser
        browser.close()


@pytest.fixture
def requests_seen() -> list[str]:
    """The URLs that `page` asked for."""
    return []


@pytest.fixture
def page(browser: Browser, requests_seen: list[str]) -> Iterator[Page]:
    """A page of its own, which must not log an error to the console."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    errors: list[str] = []
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests_seen.append(request.url))
    yield page
    context.close()
    assert errors == []
