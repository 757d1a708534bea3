"""What an attacker tries from outside. Each row of docs/security.md is one of these tests."""

import io
import json
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest
import requests

from .stack import Stack, wait_for

KNOWN_HOST = "localhost"
# Holds bodies that lack their last bytes, then completes all of them; prints what comes back.
BODIES = """
import socket, sys, threading, time
host, port, path, count, size, cookie = sys.argv[1:]
form = b'--b\\r\\nContent-Disposition: form-data; name="file"; filename="file"\\r\\n\\r\\n'
end = b"\\r\\n--b--\\r\\n"
lines = ["POST %s HTTP/1.1" % path, "Host: localhost", "Connection: close", "Cookie: %s" % cookie,
         "Content-Type: multipart/form-data; boundary=b", "Content-Length: %s" % size, "", ""]
body = memoryview(form + bytes(int(size) - len(form + end)) + end)
held = []

def send():
    connection = socket.create_connection((host, int(port)), 60)
    connection.sendall("\\r\\n".join(lines).encode())
    left = 100
    try:
        connection.sendall(body[:-left])
        held.append(connection)
        while len(held) < int(count) and left > 1:
            time.sleep(1)
            connection.sendall(body[-left:][:1])
            left -= 1
        connection.sendall(body[-left:])
    except ConnectionError:  # it is refused
        held.append(connection)
    sys.stdout.write(connection.recv(12).decode().partition(" ")[2] + "\\n")

for _ in range(int(count)):
    threading.Thread(target=send).start()
"""


def raw(production: Stack, request: str, seconds: float = 60) -> str:
    """Send bytes that no library would; return what comes until the proxy closes or is silent."""
    with socket.create_connection(("127.0.0.1", production.port), timeout=seconds) as connection:
        connection.sendall(request.encode("latin-1"))
        answer = b""
        while select.select([connection], [], [], 1 if answer else seconds)[0]:
            part = connection.recv(65536)
            if not part:
                break
            answer += part
    return answer.decode("latin-1")


def status(answer: str) -> int:
    """Read the status of a raw answer."""
    return int(answer.split(" ", 2)[1])


def untidied(production: Stack, path: str, **headers: str) -> requests.Response:
    """GET a path as it is, which requests would tidy."""
    request = requests.Request("GET", production.url, headers=headers).prepare()
    request.url = production.url + path
    return requests.Session().send(request, allow_redirects=False, timeout=60)


def from_inside(production: Stack, method: str, path: str, count: int) -> list[tuple[int, str]]:
    """Send the same request often, from an address that no other test has."""
    code = f"""
import http.client, json
found = []
for _ in range({count}):
    client = http.client.HTTPConnection("proxy", 8080)
    client.request({method!r}, {path!r}, headers={{"Host": {KNOWN_HOST!r}}})
    answer = client.getresponse()
    found.append((answer.status, answer.read().decode()))
print(json.dumps(found))
"""
    printed = production.compose("exec", "--no-TTY", "web-b", "python", "-c", code)
    return [tuple(one) for one in json.loads(printed)]


def send_bodies(production: Stack, where: str, path: str, count: int, size: int) -> Counter[str]:
    """Send bodies at a time, from here or from a service; return how often each status came back."""
    python, server = [sys.executable], ("127.0.0.1", production.port)
    if where:
        container = production.containers()[where].name
        python, server = ["docker", "exec", container, "python"], ("proxy", 8080)
    cookie = f"{production.slug}_csrftoken={'x' * 32}"  # so that Django parses the body
    command = [*python, "-c", BODIES, *map(str, (*server, path, count, size)), cookie]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Counter(done.stdout.split())


def kills(production: Stack) -> dict[str, tuple[bool, int, str]]:
    """Return whether the OOM killer was in each container, its restarts, and when it started."""
    containers = production.containers()
    states = {name: found.attrs["State"] for name, found in containers.items()}
    return {
        name: (state["OOMKilled"], containers[name].attrs["RestartCount"], state["StartedAt"])
        for name, state in states.items()
    }


def upload(production: Stack, name: str, content: bytes) -> requests.Response:
    """Store a file as media; return what a visitor gets of it."""
    files = {"file": (name, io.BytesIO(content))}
    sent = requests.post(f"{production.url}/probe/upload", files=files, timeout=60)
    return production.get(sent.json()["url"])


def test_the_data_network_does_not_lead_to_the_host(production: Stack) -> None:
    assert production.reaches_the_host("worker-default", "outside")
    assert not production.reaches_the_host("worker-default", "inside")
    assert not production.reaches_the_host("beat", "inside")
    assert not production.reaches_the_host("beat", "beat-true")


# Without a password -------------------------------------------------------------------------------


def test_prometheus_is_for_staff_and_for_reading(production: Stack) -> None:
    for path in ("", "query", "alerts", "api/v1/query?query=up", "api/v1/alerts", "metrics"):
        answer = production.get(f"/monitoring/{path}")
        assert (answer.status_code, answer.headers["Location"]) == (302, "/status/monitoring/")
    ends = requests.get(f"{production.url}/monitoring/", timeout=60)
    assert ends.url == f"{production.url}/admin/login/?next=/status/monitoring/"
    staff = production.staff_session()
    start = staff.get(f"{production.url}/status/monitoring/", timeout=60)
    assert start.url == f"{production.url}/monitoring/query"
    for method, path in (
        ("POST", "api/v1/admin/tsdb/delete_series?match[]=up"),
        ("POST", "api/v1/admin/tsdb/snapshot"),
        ("PUT", "api/v1/admin/tsdb/clean_tombstones"),
        ("POST", "api/v1/write"),
        ("POST", "-/reload"),
        ("PUT", "-/quit"),
        ("GET", "-/healthy"),
        ("GET", "debug/pprof/"),
        ("GET", "%64ebug/pprof/heap"),
        ("GET", "api/..%2fdebug/pprof/"),
        ("POST", "api/v1/query/../../../-/quit"),
    ):
        request = staff.prepare_request(requests.Request(method, production.url))
        request.url = f"{production.url}/monitoring/{path}"
        assert staff.send(request, allow_redirects=False, timeout=60).status_code == 403, path


def test_staff_pages_require_a_log_in(production: Stack) -> None:
    for path in ("", "workers", "tasks", "broker", "api/workers", "api/tasks", "api/queues/length"):
        assert production.get(f"/flower/{path}").status_code == 401, path
    for path in ("worker/shutdown/default", "task/apply/stack.tasks.sample", "worker/pool/grow/x"):
        answer = requests.post(f"{production.url}/flower/api/{path}", timeout=60)
        assert answer.status_code == 401, path
    task = "00000000-0000-0000-0000-000000000000"
    for path in (
        "status/",
        "status/live/",
        "status/failed/",
        "status/runbook/",
        f"status/sample/{task}/",
        "admin/",
        "admin/accounts/user/add/",
    ):
        answer = production.get(f"/{path}")
        assert answer.status_code == 302, path
        assert answer.headers["Location"].startswith("/admin/login/?next="), path
    for path in ("status/sample/", "status/failed/change/"):
        assert requests.post(f"{production.url}/{path}", timeout=60).status_code == 403, path
    for path in ("/.env", "/.git/config", "/compose.yaml", "/config/settings.py", "/__debug__/"):
        assert production.get(path).status_code == 404, path
    assert production.get("/healthz").text == "ok"
    assert set(production.get("/readyz").json().values()) == {"ok"}


def test_no_visitor_reports_as_a_vm(production: Stack) -> None:
    report = {"vm": "visitor", "problems": []}
    for path in ("/vm", "/vm?a", "//vm", "/./vm", "/%76m"):
        for headers in ({}, {"X-Forwarded-For": ""}, {"Connection": "close, X-Forwarded-For"}):
            answer = requests.post(production.url + path, json=report, headers=headers, timeout=60)
            assert answer.status_code == 404, (path, headers)
    assert "visitor" not in production.python(
        "from stack import problems; print(problems.reports())"
    )


def test_metrics_are_internal_without_a_token(production: Stack) -> None:
    paths = ("/metrics", "/metrics?a", "/metrics/", "//metrics", "/./metrics", "/%6Detrics")
    headers: list[dict[str, str]] = [
        {},
        {"X-Forwarded-For": ""},
        {"Connection": "close, X-Forwarded-For"},
        {"Authorization": "Bearer "},
    ]
    for path in paths:
        for more in headers:
            answer = untidied(production, path, **more)
            assert (answer.status_code, "stack_" in answer.text) == (404, False), (path, more)
    old = raw(production, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert (status(old), "stack_" in old) == (404, False)
    assert requests.head(f"{production.url}/metrics", timeout=60).status_code == 404
    code = (
        "import urllib.request as r; print(r.urlopen('http://web-a:8000/metrics').read().decode())"
    )
    inside = production.compose("exec", "--no-TTY", "web-b", "python", "-c", code)
    assert 'stack_up{service="broker"} 1.0' in inside


def test_another_site_cannot_use_a_logged_in_flower(production: Stack) -> None:
    auth = (production.settings["FLOWER_USER"], production.settings["FLOWER_PASSWORD"])
    url = f"{production.url}/flower/api/task/async-apply/stack.tasks.sample"
    elsewhere = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    answers = [
        requests.post(url, data='{"args": []}', auth=auth, headers=headers, timeout=60).status_code
        for headers in (elsewhere, {})
    ]
    assert answers == [403, 200]


def test_guessing_passwords_is_slowed_down(production: Stack) -> None:
    begun = time.monotonic()
    answers = from_inside(production, "POST", "/admin/login/", 60)
    let_through = [code for code, _ in answers if code != 429]
    # Ten at once, and 20 per minute.
    assert 11 <= len(let_through) <= 12 + (time.monotonic() - begun) / 3
    assert set(let_through) == {403}  # they lack a CSRF token
    assert {code for code, _ in answers[:11]} == {403}
    (words,) = {text for code, text in answers if code == 429}
    assert "Too many requests came from your address; try again in a minute." in words
    assert {code for code, _ in from_inside(production, "GET", "/admin/login/", 3)} == {200}
    answer = requests.post(f"{production.url}/admin/login/", timeout=60)
    assert answer.status_code == 403  # another address
    begun = time.monotonic()
    answers = [code for code, _ in from_inside(production, "GET", "/flower/", 300)]
    let_through = [code for code in answers if code != 429]
    # Fifty at once, and five per second.
    assert 51 <= len(let_through) <= 52 + (time.monotonic() - begun) * 5
    assert set(let_through) == {401}
    assert answers[:50] == [401] * 50


EVERY_PAGE_OF_FLOWER = """
import base64, http.client, json, os, re
from flower.urls import handlers

login = base64.b64encode(os.environ["FLOWER_BASIC_AUTH"].encode()).decode()
found = {}

def ask(method, path):
    client = http.client.HTTPConnection("localhost", 5555)
    client.request(method, "/flower" + path, headers={"Authorization": "Basic " + login})
    answer = client.getresponse()
    found[method + " " + path] = answer.status, answer.read().decode()

ask("GET", "/api/workers?refresh=1")  # waits for what the pages of the workers show
for handler in handlers:
    pattern = handler[0] if isinstance(handler, tuple) else handler.regex.pattern
    path = pattern.rstrip("$")
    for value in THERE if "(" in path else [""]:
        ask("GET", re.sub(r"\\(.*\\)", value, path))
    ask("POST", re.sub(r"\\(.*\\)", "nobody", path))  # what is not there is not changed
print(json.dumps(found))
"""


def test_flower_shows_no_secret(production: Stack) -> None:
    """Every page and every endpoint of its API, with a password."""
    task = production.send("default", steps=1)
    production.result(task)
    there = [f"default@{production.slug}", task, "stack.tasks.sample"]
    secrets = {
        name: value
        for name, value in production.settings.items()
        if re.search("PASSWORD|KEY", name) and value
    }
    assert {"SECRET_KEY", "POSTGRES_PASSWORD", "BROKER_PASSWORD", "CACHE_PASSWORD"} < set(secrets)
    code = f"THERE = {there!r}\n{EVERY_PAGE_OF_FLOWER}"
    pages = json.loads(production.compose("exec", "--no-TTY", "flower", "python", "-c", code))
    for page in ("workers", "tasks", "broker", f"task/{task}", f"api/task/result/{task}"):
        assert pages[f"GET /{page}"][0] == 200, page
    for page in (f"worker/{there[0]}", "api/workers?refresh=1"):
        assert "task_acks_late" in pages[f"GET /{page}"][1], "not the configuration of a worker"
    shown = [(name, page) for name in secrets for page in pages if secrets[name] in pages[page][1]]
    assert shown == []


OWNERS_CODE = {"web-a", "web-b", "worker-default", "worker-crawl", "worker-notify", "migrate"}
KNOWN_TO = {
    "SECRET_KEY": OWNERS_CODE,
    "POSTGRES_PASSWORD": OWNERS_CODE | {"db"},
    "BROKER_PASSWORD": OWNERS_CODE | {"beat", "flower", "broker"},
    "CACHE_PASSWORD": OWNERS_CODE | {"beat", "cache"},
    "FLOWER_PASSWORD": {"flower"},
    "DJANGO_SUPERUSER_PASSWORD": OWNERS_CODE,
    "PROBE_KEY": OWNERS_CODE | {"beat"},  # a variable that the owner added
}


def test_each_service_knows_only_the_secrets_that_it_needs(production: Stack) -> None:
    secrets = {
        name: value
        for name, value in production.settings.items()
        if re.search("PASSWORD|KEY", name) and value
    }
    known: dict[str, set[str]] = {name: set() for name in secrets}
    for service, container in production.containers().items():
        environment = "\n".join(container.attrs["Config"]["Env"])
        for name, value in secrets.items():
            if value in environment:
                known[name].add(service)
    assert known == KNOWN_TO


# Forged -------------------------------------------------------------------------------------------


def test_a_wrong_host_header_is_refused(production: Stack) -> None:
    for name in ("evil.example", "localhost.evil.example", "localhost@evil.example", "localhost:x"):
        answer = production.get("/admin/login/", headers={"Host": name})
        assert answer.status_code == 400, name
        assert "evil" not in answer.text
    two = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert status(raw(production, two)) == 400
    absolute = (
        "GET http://evil.example/admin/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    answer = raw(production, absolute)
    assert "evil.example" not in answer.partition("\r\n\r\n")[0]


def test_forged_forwarding_headers_change_nothing(production: Stack) -> None:
    honest = production.get("/probe/request").json()
    for name in (
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "Forwarded",
        "X-Real-IP",
    ):
        for value in ("127.0.0.1", "https", "for=127.0.0.1;proto=https;host=evil.example"):
            assert production.get("/probe/request", headers={name: value}).json() == honest


def test_a_request_with_two_ends_is_refused(production: Stack) -> None:
    start = "POST /probe/upload HTTP/1.1\r\nHost: localhost\r\n"
    for lines in (
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 4\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length: -1\r\n",
    ):
        answer = raw(production, f"{start}{lines}\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n")
        assert status(answer) in (400, 501), lines
        assert answer.count("HTTP/1.1 ") == 1, lines


def test_no_redirect_leads_to_another_site(production: Stack) -> None:
    create = (
        "from django.contrib.auth import get_user_model as get;"
        "get().objects.create_superuser('traveller', password='correct-horse-battery')"
    )
    production.python(create)
    for target in ("https://evil.example/", "//evil.example/", "/\\evil.example/"):
        session = requests.Session()
        page = session.get(f"{production.url}/admin/login/", timeout=60)
        form = {
            "username": "traveller",
            "password": "correct-horse-battery",
            "next": target,
            "csrfmiddlewaretoken": re.search(
                r'name="csrfmiddlewaretoken" value="(\w+)"', page.text
            )[1],
        }
        answer = session.post(page.url, data=form, timeout=60, allow_redirects=False)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/"), target
    for path in ("//evil.example/admin", "/%2fevil.example/admin", "/\\evil.example"):
        where = untidied(production, path).headers.get("Location", "/")
        assert re.match(r"/(?![/\\])", where), path


# Too large, too slow, too many --------------------------------------------------------------------


def test_what_is_too_large_is_refused(production: Stack) -> None:
    headers = {"X-Large": "x" * 64_000}
    assert production.get("/healthz", headers=headers).status_code == 400
    assert (
        production.get("/healthz", headers={f"X-{n}": "x" * 4000 for n in range(20)}).status_code
        == 400
    )
    assert production.get("/healthz?" + "x" * 64_000).status_code == 414
    fields = {str(number): "x" for number in range(1001)}
    url = f"{production.url}/probe/upload"
    assert requests.post(url, data=fields, timeout=60).status_code == 400
    for path, most in (
        ("/", 2**20),
        ("/flower/", 2**20),
        ("/admin/login/", 2**20),
        ("/admin/", 20 * 2**20),
        ("/probe/upload", 20 * 2**20),
    ):
        for length in (most + 1, 999999999999):
            claim = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            assert status(raw(production, claim)) == 413, (path, length)
    chunk = "100000\r\n" + "x" * 2**20 + "\r\n"
    chunked = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert status(raw(production, chunked + chunk + "1\r\nx\r\n0\r\n\r\n")) == 413


def test_an_upload_waits_on_disk(production: Stack) -> None:
    files = {"file": ("large.bin", io.BytesIO(bytes(15 * 2**20)))}
    sent = requests.post(f"{production.url}/probe/upload", files=files, timeout=60).json()
    path = sent["url"].removeprefix("/media/")
    code = f"import os; print(os.stat('/var/tmp').st_dev != os.stat('/tmp').st_dev, os.remove('/srv/media/{path}'))"
    assert production.python(code) == "True None"
    assert sent["before"].startswith("/var/tmp/")


def test_what_a_killed_process_left_of_uploads_is_removed_at_the_next_start(
    production: Stack,
) -> None:
    def run(script: str) -> list[str]:
        return production.compose("exec", "--no-TTY", "web-b", "sh", "-c", script).split()

    run("cd /var/tmp; touch new.upload.jpg; touch -d '25 hours ago' old.upload old.upload.jpg")
    try:
        production.compose("restart", "web-b")
        wait_for("removal", lambda: run("cd /var/tmp; ls *.upload*") == ["new.upload.jpg"])
    finally:
        run("rm -f /var/tmp/*.upload*")
    production.up("web-b")


def test_large_bodies_exhaust_no_memory(production: Stack) -> None:
    before = kills(production)
    for where, path, count, size, answers in (
        ("", "/none/", 60, 199 * 10**5, {"413": 60}),
        ("", "/admin/none/", 25, 199 * 10**5, {"403": 6, "429": 19}),  # 6 uploads at a time
        ("web-a", "/flower/api/task/apply/x", 25, 10**6, {"401": 20, "429": 5}),
    ):
        with ThreadPoolExecutor() as pool:
            sent = pool.submit(send_bodies, production, where, path, count, size)
            pages = [production.get("/admin/login/").status_code]
            while not sent.done():
                pages.append(production.get("/admin/login/").status_code)
        assert sent.result() == answers
        assert set(pages) == {200}
    assert kills(production) == before


def test_slow_requests_are_ended_and_one_address_has_200_at_most(production: Stack) -> None:
    def begin(text: str, count: int) -> list[socket.socket]:
        connections = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", production.port), timeout=60)
            connection.sendall(text.encode())
            connections.append(connection)
        return connections

    def answered(connections: list[socket.socket]) -> list[socket.socket]:
        return select.select(connections, [], [], 0)[0]

    def all_ended(connections: list[socket.socket]) -> Callable[[], bool]:
        return lambda: len(answered(connections)) == len(connections)

    headers = begin("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", 400)
    line = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx"
    uploads = begin(line.format("/probe/upload"), 25)
    bodies = begin(line.format("/probe/request"), 210)
    try:
        refused = wait_for(
            "the surplus", lambda: len(answered(uploads)) >= 19 and answered(uploads)
        )
        assert {connection.recv(12) for connection in refused} == {b"HTTP/1.1 429"}
        assert len(refused) == 19
        refused = wait_for("the surplus", lambda: len(answered(bodies)) >= 16 and answered(bodies))
        assert {connection.recv(12) for connection in refused} == {b"HTTP/1.1 429"}
        assert len(refused) == 16
        # From elsewhere the site answers meanwhile.
        assert from_inside(production, "GET", "/healthz", 5) == [(200, "ok")] * 5
        wait_for("the end of slow headers", all_ended(headers))
        wait_for("the end of slow bodies", all_ended([*uploads, *bodies]))
    finally:
        for connection in [*headers, *uploads, *bodies]:
            connection.close()
    wait_for("all is as before", lambda: production.get("/healthz").status_code == 200)


# Files --------------------------------------------------------------------------------------------


def test_no_path_leads_out_of_static_and_media(production: Stack) -> None:
    stays = upload(production, "inside.txt", b"inside")
    assert stays.text == "inside"
    beside = stays.url.removeprefix(production.url)
    for path in (
        f"/static..{beside}",
        f"/static/..%2f..{beside}",
        "/media../static/staticfiles.json",
    ):
        assert untidied(production, path).status_code in (400, 404), path
    ups = [
        "../",
        "%2e%2e/",
        "..%2f",
        "%2e%2e%2f",
        "..%5c",
        "..;/",
        "....//",
        "%252e%252e%252f",
        "./.././",
    ]
    for folder in ("static", "media", "static/admin", "flower/static"):
        for up in ups:
            for target in ("etc/passwd", "etc/nginx/nginx.conf", "app/config/settings.py"):
                answer = untidied(production, f"/{folder}/{up * 5}{target}")
                # 401 and 429 are Flower's.
                assert answer.status_code in (400, 401, 404, 429), answer.url
                assert not re.search("root:|worker_processes|SECRET_KEY", answer.text), answer.url
    for path in (
        "/static../",
        "/media..",
        "/static/%00",
        "/media/",
        "/static/",
        "/media/x%00.html",
    ):
        assert untidied(production, path).status_code in (400, 403, 404), path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.html", b"<script>alert(1)</script>"),
        (
            "page.xhtml",
            b"<html xmlns='http://www.w3.org/1999/xhtml'><script>alert(1)</script></html>",
        ),
        ("image.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"),
        ("feed.xml", b"<?xml-stylesheet href='javascript:alert(1)'?><x/>"),
        ("photo.jpg", b"<script>alert(1)</script>"),
        ("unknown", b"<script>alert(1)</script>"),
    ],
)
def test_no_upload_runs_in_a_browser(production: Stack, name: str, content: bytes) -> None:
    answer = upload(production, name, content)
    assert answer.content == content
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "script" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"


def test_what_lies_in_the_project_folder_gets_into_no_image_and_not_into_git(
    production: Stack, tmp_path: Path
) -> None:
    """As commands of docs/production.md leave it there, and people do."""
    folder = tmp_path / "project"
    shutil.copytree(production.folder, folder)
    mark = f"LEFTOVER{time.monotonic_ns()}"
    names = (
        "database.dump database.sql db.sqlite3 deploy/database.dump media.tar media.tar.gz media.zip"
        " uploads.tgz site.tar site.tar.half backups/a.tar privkey.pem nginx/privkey.pem"
        " probe/service.key .env .env.production .env.backup deploy/.env deploy/.env.production"
    )
    for name in names.split():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{mark}\n")
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    found = subprocess.run([*git, "grep", "--cached", "-l", mark], capture_output=True, text=True)
    assert found.stdout.splitlines() == []
    tracked = subprocess.check_output([*git, "ls-files"], text=True).splitlines()
    assert {".env.example", "compose.yaml", "ops/deploy"} < set(tracked)
    for target, where in (("app", ["/app", "/srv"]), ("proxy", ["/etc/nginx"])):
        image = f"{production.slug}-leftovers:{target}"  # removed with the stack
        production.shell(f"docker build --quiet --target {target} --tag {image} {folder}")
        grep = ["grep", "--recursive", "--files-with-matches", mark, *where]
        with pytest.raises(docker.errors.ContainerError) as nothing:
            production.docker.containers.run(image, grep[1:], entrypoint="grep", remove=True)
        assert nothing.value.exit_status == 1  # found nothing


# Inside a container -------------------------------------------------------------------------------

FORKS = """
import subprocess
started = []
try:
    while len(started) < 2000:
        started.append(subprocess.Popen(["sleep", "600"]))
except BlockingIOError:
    pass
print(len(started))
for process in started:
    process.kill()
"""


def test_one_container_cannot_use_up_the_machine(production: Stack) -> None:
    for name, container in production.containers().items():
        host = container.attrs["HostConfig"]
        assert host["PidsLimit"] == 500, name
        if name != "migrate":  # ends by itself
            assert host["MemorySwap"] == host["Memory"] > 0, name  # the former is both together
    run = ["run", "--rm", "--no-TTY", "--no-deps", "web"]
    assert int(production.compose(*run, "python", "-c", FORKS)) < 500


SQL = """
import os, psycopg
from django.db import Error, connection
for statement in [
    "COPY (SELECT 1) TO PROGRAM 'id'",
    "COPY accounts_user FROM PROGRAM 'id'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT lo_import('/etc/passwd')",
    "ALTER SYSTEM SET application_name = other",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "CREATE ROLE other SUPERUSER",
    "CREATE DATABASE other",
]:
    try:
        connection.cursor().execute(statement)
    except Error as error:
        print(type(error.__cause__).__name__)
    else:
        print(statement)
superuser = os.environ["POSTGRES_USER"] + "_admin"
try:
    psycopg.connect(host="db", user=superuser, password=os.environ["POSTGRES_PASSWORD"], dbname="postgres")
except psycopg.OperationalError as error:
    print("authentication failed" in str(error))
"""


def test_sql_cannot_leave_the_database(production: Stack) -> None:
    assert production.python(SQL).split() == ["InsufficientPrivilege"] * 8 + ["True"]
    # The superuser is for those who may open a shell in the container.
    psql = ["exec", "--no-TTY", "db", "psql", "--username=app_admin", "-tA", "-c"]
    assert production.compose(*psql, "SHOW is_superuser").strip() == "on"


REDIS = """
from config.celery import app
from redis.exceptions import NoPermissionError

client = app.connection_for_write().default_channel.client
for command in [
    "FLUSHALL", "FLUSHDB", "SHUTDOWN NOSAVE", "CONFIG SET maxmemory 1", "SAVE", "ACL LIST",
    "REPLICAOF NO ONE", "SWAPDB 0 1", "MONITOR",
]:
    try:
        client.execute_command(*command.split())
    except NoPermissionError:
        print("refused")
    else:
        print(command)
"""


def test_a_sender_of_tasks_cannot_empty_the_broker(production: Stack) -> None:
    assert production.python(REDIS).splitlines() == ["refused"] * 9


@pytest.mark.parametrize("name", ["script.js", "SCRIPT.JS", "module.mjs"])
def test_no_upload_is_a_script_of_the_site(production: Stack, name: str) -> None:
    answer = upload(production, name, b"alert(1)")
    assert answer.text == "alert(1)"
    assert answer.headers["Content-Type"] == "text/plain"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


def test_no_symbolic_link_is_followed_in_media(production: Stack) -> None:
    def run(script: str) -> None:
        production.compose("exec", "--no-TTY", "web-a", "sh", "-c", f"cd /srv/media; {script}")

    run("mkdir links; cd links; echo inside >file.txt; ln -s file.txt inside; ln -s /etc etc")
    run("cd links; ln -s /etc/passwd passwd; ln -s .. up")
    try:
        assert production.get("/media/links/file.txt").text == "inside\n"
        for path in ("inside", "passwd", "etc/passwd", "up/links/file.txt"):
            assert production.get(f"/media/links/{path}").status_code in (403, 404), path
    finally:
        run("rm -r links")


# Traces -------------------------------------------------------------------------------------------


def test_no_line_of_a_log_can_be_forged(production: Stack) -> None:
    mark = f"FORGED{time.monotonic_ns()}"
    for request in (
        f"GET /x%0a{mark}%0d%1b[31m HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        f'GET /x HTTP/1.1\r\nHost: localhost\r\nUser-Agent: "\x1b[31m{mark}\r\nConnection: close\r\n\r\n',
        f"GET /x HTTP/1.1\r\nHost: a\x1b[31m{mark}\r\nConnection: close\r\n\r\n",
        f"GET /admin/login/?next=%0a{mark} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        f"\x1b[31m{mark}\r\n\r\n",
    ):
        assert status(raw(production, request)) in (200, 400, 404)

    def lines() -> list[str]:
        containers = production.containers()
        logs = b"".join(containers[service].logs() for service in ("proxy", "web-a", "web-b"))
        return [line for line in logs.decode().split("\n") if mark in line]

    found = wait_for("all are logged", lambda: len(lines()) >= 5 and lines())
    assert [line for line in found if line.startswith(mark) or "\x1b" in line] == []


def test_responses_contain_no_versions(production: Stack) -> None:
    for path in ("/healthz", "/nothing", "/static/none", "/flower/", "/%00"):
        answer = untidied(production, path)
        assert not re.search(r"\d", answer.headers.get("Server", "")), path
        assert "Traceback" not in answer.text
    assert status(raw(production, "TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n")) == 405


def test_every_row_of_the_manual_is_a_test(production: Stack) -> None:
    manual = (production.folder / "docs" / "security.md").read_text()
    tried = manual.partition("## What was tried")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?) \|", tried, re.MULTILINE)
    told = {row for row in rows if row not in ("attack", "---")}
    assert told == set(ROWS)
    assert all(test in globals() for test in ROWS.values())


# In words, for owners of a project, who do not have these tests.
ROWS = {
    "Prometheus without a password, or changes in it with one": "test_prometheus_is_for_staff_and_for_reading",
    "a program in `db`, `broker` or `cache` that connects to the internet or to the host": "test_the_data_network_does_not_lead_to_the_host",
    "pages, Flower's API, `.env` without a password": "test_staff_pages_require_a_log_in",
    "`/metrics` without a token": "test_metrics_are_internal_without_a_token",
    "another site uses Flower with your password": "test_another_site_cannot_use_a_logged_in_flower",
    "secrets of `.env` in Flower, with its password": "test_flower_shows_no_secret",
    "a container that runs an attacker's code, such as Flower": "test_each_service_knows_only_the_secrets_that_it_needs",
    "guessing passwords": "test_guessing_passwords_is_slowed_down",
    "a false `Host`": "test_a_wrong_host_header_is_refused",
    "forged `X-Forwarded-*`": "test_forged_forwarding_headers_change_nothing",
    "request smuggling": "test_a_request_with_two_ends_is_refused",
    "`?next=` to another site": "test_no_redirect_leads_to_another_site",
    "large headers, bodies, forms": "test_what_is_too_large_is_refused",
    "large bodies, all sent at once": "test_large_bodies_exhaust_no_memory",
    "slow requests, many connections": "test_slow_requests_are_ended_and_one_address_has_200_at_most",
    "path traversal in static and media files": "test_no_path_leads_out_of_static_and_media",
    "an upload that a browser would run": "test_no_upload_runs_in_a_browser",
    "dumps, archives, keys and copies of `.env` in the project's folder": "test_what_lies_in_the_project_folder_gets_into_no_image_and_not_into_git",
    "a program in a container that takes memory or processes without end": "test_one_container_cannot_use_up_the_machine",
    "SQL injection: a shell, files, another database": "test_sql_cannot_leave_the_database",
    "a sender of tasks empties, stops or reconfigures Redis, the broker": "test_a_sender_of_tasks_cannot_empty_the_broker",
    "an upload as a script for the site's pages": "test_no_upload_is_a_script_of_the_site",
    "a symbolic link among media files": "test_no_symbolic_link_is_followed_in_media",
    "log injection": "test_no_line_of_a_log_can_be_forged",
    "versions in answers": "test_responses_contain_no_versions",
}
