"""docs/how-to.md: one project to which all of it was applied, with the manual's own lines."""

import http.client
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import pytest
from docker.models.containers import Container

from .stack import LAPTOP, Stack, wait_for

URLS = """\
from django.urls import path
from django.views.generic import TemplateView

from .views import order, receipt

urlpatterns = [
    path("", TemplateView.as_view(template_name="shop.html")),
    path("order", order),
    path("receipt/<name>", receipt),
]
"""
TASKS = """\
from celery import shared_task
from django.contrib.auth.models import Group


@shared_task
def send_receipt(order_id: int) -> None:
    order = Group.objects.get(pk=order_id)
    Group.objects.create(name=f"{order.name}, receipt {Group.objects.count()}")
"""
VIEW = """\
from urllib.parse import quote

from django.contrib.auth.models import Group as Order
from django.core.files.storage import FileSystemStorage
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from .tasks import send_receipt
{send}

def order(request: HttpRequest) -> HttpResponse:
{block}
    return HttpResponse("Thank you.")


{private}"""
PAGE = '{% load static %}<script nonce="{{ csp_nonce }}"></script><img src="{% static \'icon.svg\' %}">'
CLIENT = """
import socket
from websockets.sync.client import connect
proxy = socket.create_connection(("proxy", 8080))
with connect("ws://localhost/ws/echo/", sock=proxy, origin="{origin}") as echo:
    for text in ('{{"a": 1}}', '{{"b": 2}}'):
        echo.send(text)
        print(echo.recv())
"""


def blocks(stack: Stack, heading: str) -> list[str]:
    """Return the code that a recipe gives, in turn."""
    text = (stack.folder / "docs/how-to.md").read_text()
    _, found, rest = text.partition(f"\n## {heading}\n")
    assert found, f"how-to.md has no heading {heading!r}"
    return re.findall(r"```\w+\n(.*?)```", rest.partition("\n## ")[0], re.DOTALL)


def append(stack: Stack, name: str, text: str) -> None:
    """Add lines to the end of a file."""
    path = stack.folder / name
    path.write_text(f"{path.read_text()}\n{text}")


def prepend(stack: Stack, name: str, text: str) -> None:
    """Add lines to the top of a file."""
    path = stack.folder / name
    path.write_text(f"{text}\n{path.read_text()}")


def apply_everything(stack: Stack) -> None:
    """Follow all recipes."""
    manual = (stack.folder / "docs/how-to.md").read_text()
    settings = "config/settings.py"
    shop = stack.folder / "shop"
    shop.mkdir()
    (shop / "__init__.py").touch()
    (shop / "urls.py").write_text(URLS)
    (stack.folder / "templates/shop.html").write_text(PAGE)
    urls = (stack.folder / "config/urls.py").read_text()
    (home,) = re.findall(r"    (.*home\.html.*)\n", urls)
    (page,) = re.findall(r"by `(path\(.*\),)`", manual)
    stack.edit("config/urls.py", home, page)

    (policy,) = blocks(stack, "Load scripts, fonts or images from elsewhere")
    append(stack, settings, policy)
    (processor,) = re.findall(r'`("django\.template\.context_processors\.csp")`', manual)
    request = '                "django.template.context_processors.request",\n'
    stack.edit(settings, request, f"{request}                {processor},\n")

    (pickles,) = blocks(stack, "Cache pages and objects")
    append(stack, settings, pickles)

    hosts, redirect = blocks(stack, "Serve a second domain")
    name, _, value = hosts.strip().partition("=")
    stack.set(**{name: value})
    prepend(stack, "nginx/site.conf", redirect)

    below, rewrite = blocks(stack, "Serve the site below a path")
    append(stack, settings, below)
    prepend(stack, "nginx/site.conf", rewrite)
    (location,) = re.findall("`(location = .*?)`", manual)
    stack.edit("nginx/site.conf", "location = /admin/login/", location)
    (static,) = re.findall(r'`(staticfiles_urlpatterns\(".*"\))`', manual)
    stack.edit("config/urls.py", "staticfiles_urlpatterns()", static)

    outbox, send = blocks(stack, "When a task cannot be sent")
    append(stack, settings, outbox)
    append(stack, settings, 'CELERY_BEAT_SCHEDULE["send-outbox"]["schedule"] = 2\n')
    stack.edit(settings, '    "stack",\n', '    "stack",\n    "shop",\n')
    (shop / "tasks.py").write_text(TASKS)
    imported, _, block = send.partition("\n\n")
    block = indent(block.replace("create(…)", 'create(name="order")'), "    ")

    web, proxy, volume, location, view = blocks(stack, "Private uploads")
    own = '  volumes: ["media:/srv/media", "web-temp:/var/tmp"]\n'
    stack.edit("compose.yaml", own, web.partition("\n")[2])
    stack.edit("compose.yaml", "      - proxy-temp:", f"{proxy}      - proxy-temp:")
    append(stack, "compose.yaml", volume)
    stack.edit("Dockerfile", "/srv/media", "/srv/media /srv/private")
    (stack.folder / "nginx/locations" / location.split()[1]).write_text(location)
    readme = (stack.folder / "nginx/locations/README.md").read_text()
    (reports,) = re.findall(r"```nginx\n(.*?)```", readme, re.DOTALL)
    (stack.folder / "nginx/locations/reports.conf").write_text(reports)
    stack.set(BACKUP_PATHS=re.findall("`BACKUP_PATHS=(.*?)`", manual)[0])
    view = view.replace("@login_required\n", "")
    (shop / "views.py").write_text(VIEW.format(send=imported, block=block, private=view))

    (uploads,) = blocks(stack, "Accept larger uploads")
    stack.set(**dict(line.split("=", 1) for line in uploads.splitlines()))

    storage, environment = blocks(stack, "Store uploads in S3")
    append(stack, settings, storage)
    names = dict(line.split("=", 1) for line in environment.splitlines())
    own = {"S3_ENDPOINT": "http://s3:9000", "S3_ACCESS_KEY": "key", "S3_SECRET_KEY": "secret"}
    stack.set(**names | own)

    consumer, application = blocks(stack, "WebSockets")
    (shop / "consumers.py").write_text(consumer)
    (stack.folder / "config/asgi.py").write_text(application)

    libraries = re.findall(r'`("[\w\[\]-]+>=[\d.]+")`', manual)
    assert len(libraries) == 3
    lines = "".join(f"    {library},\n" for library in libraries)
    stack.edit("pyproject.toml", "dependencies = [\n", f"dependencies = [\n{lines}")
    dependencies = (stack.folder / "docs/dependencies.md").read_text()
    packages, export = re.findall(r"```dockerfile\n(.*?)```", dependencies, re.DOTALL)
    packages = re.sub('"gcc .*"', '"make"', packages)  # which is smaller
    for line in packages.splitlines():
        stack.edit("Dockerfile", line.partition("=")[0] + '=""\n', f"{line}\n")
    stack.edit("Dockerfile", "RUN export SECRET_KEY=build \\\n", export)
    append(stack, settings, 'PAYMENT_KEY = env("PAYMENT_KEY")')
    stack.set(PAYMENT_KEY="key")
    stack.edit("compose.yaml", "      SENTRY_DSN:\n", "      SENTRY_DSN:\n      PAYMENT_KEY:\n")
    messages = shop / "locale/de/LC_MESSAGES"
    messages.mkdir(parents=True)
    (messages / "django.po").write_text('msgid "shop"\nmsgstr "Laden"\n')
    (compile_and_build,) = re.findall(r"```sh\n(.*?)```", dependencies, re.DOTALL)
    stack.shell(compile_and_build)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The project, in development, where changes are looked for, as on a drive without events."""
    answers = {"example": "false", "queues": "none", "timezone": "Asia/Kolkata"}
    stack = Stack(tmp_path_factory.mktemp("how-to"), LAPTOP, **answers)
    stack.set(WATCHFILES_FORCE_POLLING="true", BEAT_INTERNAL="false")
    try:
        apply_everything(stack)
        stack.up()
        yield stack
    finally:
        stack.remove()


def test_the_page_is_that_of_the_app_with_a_script_of_its_own(project: Stack) -> None:
    answer = project.get("/shop/")
    (nonce,) = re.findall('nonce="(.+?)"', answer.text)
    policy = answer.headers["Content-Security-Policy"]
    assert f"script-src 'self' 'nonce-{nonce}' https://cdn.example;" in policy
    assert f"img-src 'self' {project.settings['S3_ORIGIN']}" in policy


def test_beat_has_outbound_access_where_env_says_so(project: Stack) -> None:
    assert project.reaches_the_host("beat", "beat-false")
    assert not project.reaches_the_host("beat", "inside")


def test_a_page_is_cached_in_the_cache_that_pickles(project: Stack) -> None:
    code = (
        "from django.http import HttpResponse; from django.test import RequestFactory;"
        "from django.views.decorators.cache import cache_page; made = [];"
        "make = lambda request: made.append(1) or HttpResponse('page');"
        "view = cache_page(60, cache={cache!r})(make);"
        "print([view(RequestFactory().get('/', headers={{'Host': 'localhost'}})).content for _ in range(2)], len(made))"
    )
    assert project.python(code.format(cache="pickles")) == "[b'page', b'page'] 1"
    with pytest.raises(AssertionError, match="not JSON serializable"):
        project.python(code.format(cache="default"))


def test_a_task_of_the_outbox_is_sent_when_the_broker_is_back(project: Stack) -> None:
    def waiting() -> int:
        query = "from stack.outbox.models import Message; print(Message.objects.count())"
        return int(project.python(query))

    def orders() -> list[str]:
        query = "from django.contrib.auth.models import Group; print(*Group.objects.all(), sep=';')"
        return sorted(project.python(query).split(";"))

    project.compose("stop", "broker")
    try:
        answer = project.get("/shop/order")
        assert (answer.status_code, answer.text) == (200, "Thank you.")
        assert (orders(), waiting()) == (["order"], 1)
        page = (
            "from django.contrib.auth import get_user_model; from django.test import Client;"
            "client = Client(headers={'Host': 'localhost'});"
            "client.force_login(get_user_model().objects.get(username='admin'));"
            "print(client.get('/admin/stack_outbox/message/').text)"
        )
        assert "shop.tasks.send_receipt" in project.python(page)
    finally:
        project.start("broker")
    # Not to wait a minute for it.
    project.python(
        "from datetime import timedelta; from django.utils import timezone;"
        "from stack.outbox.models import Message;"
        "Message.objects.update(created_at=timezone.now() - timedelta(minutes=2))"
    )
    wait_for("the receipt", lambda: len(orders()) > 1)
    wait_for("the end of the row", lambda: waiting() == 0)
    assert orders() == ["order", "order, receipt 1"]


def test_everything_is_below_the_path(project: Stack) -> None:
    (icon,) = re.findall('src="(.+?)"', project.get("/shop/").text)
    assert icon == "/shop/static/icon.svg"
    assert project.get(icon).status_code == 200
    login = project.get("/shop/admin/")
    assert login.headers["Location"] == "/shop/admin/login/?next=/shop/admin/"
    form = project.get(login.headers["Location"])
    assert form.status_code == 200
    assert "; Path=/shop/;" in form.headers["Set-Cookie"]


def test_the_second_domain_leads_to_the_first(project: Stack) -> None:
    first, second = project.settings["ALLOWED_HOSTS"].split(",")
    answer = project.get("/shop/?a=1", headers={"Host": second})
    assert answer.status_code == 301
    assert answer.headers["Location"] == f"http://{first}/shop/?a=1"
    assert project.get("/shop/", headers={"Host": first}).status_code == 200


def test_the_system_package_is_in_every_container(project: Stack) -> None:
    for service in ("web-a", "worker-default"):
        assert "gettext" in project.compose("exec", "--no-TTY", service, "msgfmt", "--version")


def test_a_build_has_its_packages_and_settings_and_compiles_translations(project: Stack) -> None:
    def has(target: str, *command: str) -> bool:
        tag = f"{project.slug}-{target}"
        project.shell(f"docker build --quiet --target={target} --tag={tag} .")
        run = ["docker", "run", "--rm", "--network=none", tag, *command]
        return not subprocess.run(run, capture_output=True).returncode

    assert has("dependencies", "make", "--version")
    assert not has("app", "make", "--version")
    assert has("app", "test", "-e", "/srv/static/icon.svg")
    assert has("app", "test", "-e", "shop/locale/de/LC_MESSAGES/django.mo")


def test_a_larger_upload_is_accepted_where_env_names_it(project: Stack) -> None:
    for path, megabytes, accepted in (
        ("/photos/new/", 100, True),
        ("/photos/new/", 101, False),
        ("/photos/", 1, True),
        ("/photos/", 2, False),
    ):
        client = http.client.HTTPConnection("127.0.0.1", project.port, timeout=60)
        client.putrequest("POST", path)
        client.putheader("Content-Length", str(megabytes * 2**20))
        client.putheader("Expect", "100-continue")
        client.endheaders()
        first = client.sock.recv(12)
        client.close()
        assert first == (b"HTTP/1.1 100" if accepted else b"HTTP/1.1 413"), (path, megabytes)


def test_a_private_upload_is_sent_when_a_view_says_so_and_is_in_the_backup(
    project: Stack, tmp_path: Path
) -> None:
    code = (
        "from django.core.files.base import ContentFile; from shop.views import private;"
        "private.save('a b.txt', ContentFile(b'secret'))"
    )
    project.python(code)
    answer = project.get("/shop/receipt/a%20b.txt")
    assert (answer.text, answer.headers["Content-Type"]) == ("secret", "text/plain")
    assert project.get("/private/a%20b.txt").status_code == 404
    project.shell(f"ops/backup --to={tmp_path}")
    (file,) = tmp_path.glob("*.tar")
    with tarfile.open(file) as archive:
        assert archive.extractfile("srv/private/a b.txt").read() == b"secret"
    assert project.get("/reports/").status_code == 404  # Django's


@pytest.fixture
def s3(project: Stack) -> Iterator[Container]:
    """The server that .env names."""
    tag = f"{project.slug}-s3"
    project.docker.images.build(rm=True, path=str(Path(__file__).parent / "s3"), tag=tag)
    container = project.docker.containers.create(tag, name=tag)
    try:
        project.docker.networks.get(f"{project.slug}_edge").connect(container, aliases=["s3"])
        container.start()
        yield container
    finally:
        container.remove(force=True)


def test_uploads_are_in_s3(project: Stack, s3: Container) -> None:
    save = (
        "from urllib.request import urlopen;"
        "from django.core.files.base import ContentFile;"
        "from django.core.files.storage import default_storage as s;"
        "name = s.save('of/the/shop.txt', ContentFile(b'hello'));"
        "print(s.open(name).read(), urlopen(s.url(name)).read())"
    )

    def saved() -> str | None:
        try:
            return project.python(save)
        except AssertionError:  # the server is about to start
            return None

    assert wait_for("the upload", saved) == "b'hello' b'hello'"
    assert s3.exec_run(["cat", "/data/uploads/of/the/shop.txt"]).output == b"hello"
    assert "of" not in project.compose("exec", "--no-TTY", "web-a", "ls", "/srv/media").split()


def test_a_websocket_passes_the_proxy(project: Stack) -> None:
    run = ["run", "--rm", "--no-TTY", "--no-deps", "web", "python", "-c"]
    printed = project.compose(*run, CLIENT.format(origin="http://localhost"))
    assert printed.splitlines() == ['{"a": 1}', '{"b": 2}']
    refused = project.compose(*run, CLIENT.format(origin="http://elsewhere"), check=False)
    assert "HTTP 403" in refused
    # Nothing else that a client wants instead of HTTP reaches web.
    answer = project.get("/shop/", headers={"Upgrade": "h2c", "Connection": "Upgrade"})
    assert answer.status_code == 200


def test_the_log_has_local_time_and_a_number_for_each_status(project: Stack) -> None:
    path = "/shop/nothing-here"
    assert project.get(path).status_code == 404

    def lines(service: str) -> list[str]:
        log = project.compose("logs", "--no-log-prefix", service).splitlines()
        return [line for line in log if path in line]

    (line,) = wait_for("the proxy's line", lambda: lines("proxy"))
    assert re.search(r'{"time":"[\d-]{10}T[\d:]{8}\+05:30",.*"status":404,', line)
    (line,) = lines("web-a")
    pattern = rf"[\d-]{{10}} [\d:.]{{12}}\+05:30 WARNING django.request Not Found: {path} "
    assert re.search(pattern, line)


def test_changes_are_found_without_events(project: Stack) -> None:
    for service in ("web-a", "worker-default"):
        find = "readlink /proc/[0-9]*/fd/* | grep inotify || true"
        assert project.compose("exec", "--no-TTY", service, "sh", "-c", find) == ""
    project.edit("shop/urls.py", 'path("",', 'path("new", TemplateView.as_view()), path("",')
    wait_for("the new page", lambda: project.get("/shop/new").status_code != 404)
