"""The stack as a VM runs it: health, queues, proxy, faults of its peers, what an attacker sees."""

import io
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.runbook import follow, forget_what_was_counted, problems

from .stack import Stack, wait_for

QUEUES = ["crawl", "default", "notify"]
SERVICES = [
    "beat", "broker", "cache", "certificates", "db", "flower", "migrate", "monitoring", "proxy", "web-a",
    "web-b", *[f"worker-{queue}" for queue in QUEUES],
]  # fmt: skip
LONG_RUNNING = [service for service in SERVICES if service != "migrate"]


def test_every_service_is_healthy(production: Stack) -> None:
    assert sorted(production.containers()) == sorted(SERVICES)
    assert {service: production.health(service) for service in LONG_RUNNING} == dict.fromkeys(
        LONG_RUNNING, "healthy"
    )
    assert production.containers()["migrate"].attrs["State"]["ExitCode"] == 0


def test_djangos_own_check_for_production_has_no_warning(production: Stack) -> None:
    arguments = ["run", "--rm", "--no-TTY", "--no-deps", "--env", "HTTPS=acme", "web"]
    production.compose(*arguments, "./manage.py", "check", "--deploy", "--fail-level", "WARNING")


# Queues -------------------------------------------------------------------------------------------


def test_each_worker_consumes_its_own_queue_and_no_other(production: Stack) -> None:
    queues = production.inspect("active_queues")
    assert {
        node: [(queue["name"], queue["routing_key"]) for queue in found]
        for node, found in queues.items()
    } == {f"{queue}@{production.slug}": [(queue, queue)] for queue in QUEUES}


def test_each_queues_tasks_are_run_by_its_own_worker(production: Stack) -> None:
    def counts() -> dict[str, int]:
        stats = production.inspect("stats")
        return {node: found["total"].get("stack.tasks.sample", 0) for node, found in stats.items()}

    before = counts()
    for queue in QUEUES:
        task = production.send(queue, steps=1)
        assert production.result(task) == f"Done by {queue}@{production.slug}."
    assert {node: count - before[node] for node, count in counts().items()} == {
        f"{queue}@{production.slug}": 1 for queue in QUEUES
    }


def test_env_sets_up_all_workers_or_one(production: Stack) -> None:
    stats = production.inspect("stats")
    found = {
        node.split("@")[0]: (pool["max-concurrency"], *pool["timeouts"])
        for node, pool in ((node, found["pool"]) for node, found in stats.items())
    }
    assert found == {
        "default": (2, 180.0, 200.0),
        "crawl": (3, 180.0, 200.0),
        "notify": (2, 90.0, 100.0),
    }


def test_production_has_the_example_and_crawls_nothing_by_itself(production: Stack) -> None:
    count = "from posts.models import Site; print(Site.objects.count())"
    assert production.python(count) == "0"
    assert "sample-site" not in production.containers()


def test_a_task_without_a_route_runs_on_default(production: Stack) -> None:
    code = "from stack.tasks import sample; print(sample.delay(steps=1).get(timeout=180))"
    assert production.python(code) == f"Done by default@{production.slug}."


def test_the_sample_command_tries_every_queue(production: Stack) -> None:
    printed = production.manage("sample")
    assert re.findall(r"^(\w+) +SUCCESS", printed, flags=re.MULTILINE) == [
        "default",
        "crawl",
        "notify",
    ]
    assert "No such queue: nothing" in production.compose(
        "exec", "--no-TTY", "web-a", "./manage.py", "sample", "nothing", check=False
    )


def test_a_rate_limit_can_be_changed_while_it_runs(production: Stack) -> None:
    def limit(rate: str) -> None:
        production.compose(
            "exec", "--no-TTY", "web-a",
            "celery", "-A", "config", "control", "rate_limit", "stack.tasks.sample", rate,
        )  # fmt: skip

    def state(task: str) -> str:
        return production.python(
            f"from config.celery import app; print(app.AsyncResult({task!r}).state)"
        )

    limit("2/m")  # which leaves half a minute to look
    first, second = (production.send("crawl", steps=1, pause=0) for _ in range(2))
    production.result(first)
    assert state(second) == "PENDING"
    limit("0")
    production.result(production.send("crawl", steps=1, pause=0))
    production.result(second)


def test_beat_sends_what_is_due(production: Stack) -> None:
    def ticks() -> int:
        return int(
            production.python("from django.core.cache import cache; print(cache.get('ticks', 0))")
        )

    before = ticks()
    wait_for("two ticks of beat", lambda: ticks() >= before + 2)


def test_the_limits_of_a_task_fit_inside_each_other(production: Stack) -> None:
    code = (
        "from config.celery import app; c = app.conf;"
        "print(c.task_soft_time_limit, c.task_time_limit,"
        " c.broker_transport_options['visibility_timeout'])"
    )
    soft, hard, visibility = map(float, production.python(code).split())
    for queue in QUEUES:
        grace = production.containers()[f"worker-{queue}"].attrs["Config"]["StopTimeout"]
        assert soft < hard < grace
    assert hard < visibility


def test_a_stopped_worker_ends_its_task_first(production: Stack) -> None:
    code = (
        "from probe.tasks import wait; print(wait.apply_async(('end of task',), queue='notify').id)"
    )
    task = production.python(code)
    wait_for("the task runs", lambda: task in str(production.inspect("active")))
    worker = production.containers()["worker-notify"]
    before = worker.logs().count(b"Warm shutdown")
    with ThreadPoolExecutor() as pool:
        stop = pool.submit(production.compose, "stop", "worker-notify")
        try:
            wait_for("the stop", lambda: worker.logs().count(b"Warm shutdown") > before)
        finally:
            production.python("from django.core.cache import cache; cache.set('end of task', True)")
        stop.result()
    assert production.containers()["worker-notify"].attrs["State"]["ExitCode"] == 0
    assert production.result(task, timeout=1) == "waited"
    production.start("worker-notify")


def test_flower_remembers_its_tasks_over_a_restart(production: Stack) -> None:
    task = production.send("default", steps=1)
    production.result(task)
    auth = (production.settings["FLOWER_USER"], production.settings["FLOWER_PASSWORD"])

    def known() -> bool:
        return production.get(f"/flower/api/task/info/{task}", auth=auth).status_code == 200

    wait_for("Flower has seen the task", known)
    production.compose("restart", "flower")
    wait_for("Flower still knows the task", known)


def test_a_result_is_no_write_of_its_own(production: Stack) -> None:
    monitor = [
        *["docker", "exec", production.containers()["broker"].id, "sh", "-c"],
        "REDISCLI_AUTH=$(cat /tmp/admin) exec timeout 60 redis-cli --user admin monitor",
    ]
    with subprocess.Popen(monitor, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "OK\n"
        task = production.send("default", steps=0, pause=0)
        try:
            line = next(
                line for line in process.stdout if f'"SET" "celery-task-meta-{task}"' in line
            )
        finally:
            process.kill()
    assert " lua] " in line  # by the script that acknowledges
    assert production.result(task).startswith("Done by")


def test_the_broker_writes_to_disk_and_evicts_nothing_but_the_cache_may(production: Stack) -> None:
    def config(service: str) -> dict[str, str]:
        names = ("appendonly", "appendfsync", "maxmemory-policy")
        lines = production.compose(
            "exec", "--no-TTY", service, "redis-cli", "config", "get", *names
        ).splitlines()
        return dict(zip(lines[::2], lines[1::2], strict=True))

    kept = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    assert config("broker") == kept
    assert config("cache")["appendonly"] == "no"
    assert config("cache")["maxmemory-policy"] == "allkeys-lru"


def open_connections(stack: Stack, web: str) -> int:
    """Return how many connections a web instance has to the database."""
    networks = stack.containers()[web].attrs["NetworkSettings"]["Networks"]
    address = networks[f"{stack.slug}_inside"]["IPAddress"]
    query = f"SELECT count(*) FROM pg_stat_activity WHERE client_addr = '{address}'"
    psql = ["psql", "--username=app", "--dbname=app", "-tA", "-c", query]
    return int(stack.containers()["db"].exec_run(psql).output)


def test_the_web_has_a_pool_of_connections_and_a_command_beside_it_has_none(
    production: Stack,
) -> None:
    wait_for(
        "a request was served",
        lambda: production.get("/readyz") and open_connections(production, "web-a"),
    )
    code = "from django.db import connection; print(connection.settings_dict['OPTIONS'])"
    assert "pool" not in production.python(code)
    assert open_connections(production, "web-a") >= 1, "it is closed after each request"


def test_the_first_requests_after_a_restart_of_the_database_are_served(production: Stack) -> None:
    def ask(_: object) -> int:
        return production.get("/probe/query").status_code

    def both_have_several() -> bool:
        with ThreadPoolExecutor(16) as threads:
            assert set(threads.map(ask, range(16))) == {200}
        return all(open_connections(production, web) >= 4 for web in ("web-a", "web-b"))

    wait_for("several connections of each", both_have_several)
    production.compose("restart", "db")
    wait_for("a healthy database", lambda: production.health("db") == "healthy")
    assert [ask(None) for _ in range(4)] == [200] * 4


# Proxy --------------------------------------------------------------------------------------------


def test_static_files_have_hashed_names_and_are_kept_for_a_year(production: Stack) -> None:
    page = production.get("/admin/login/").text
    path = re.search(r'href="(/static/admin/css/base\.[0-9a-f]{12}\.css)"', page)[1]
    answer = production.get(path, headers={"Accept-Encoding": "gzip"})
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert answer.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["Vary"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Server"] == "nginx"
    assert production.get("/static/admin/css/none.css").status_code == 404
    assert production.get("/static/staticfiles.json").status_code == 404
    assert production.get("/static/../config/settings.py").status_code == 404


def test_static_files_without_a_hash_in_the_name_are_compared_at_each_use(
    production: Stack,
) -> None:
    answer = production.get("/static/admin/css/base.css", headers={"Accept-Encoding": "gzip"})
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["Content-Encoding"] == "gzip"
    assert not answer.headers["ETag"].startswith("W/")  # compressed once, not now
    same = {"Accept-Encoding": "gzip", "If-None-Match": answer.headers["ETag"]}
    assert production.get("/static/admin/css/base.css", headers=same).status_code == 304


def test_the_proxy_has_locations_of_its_owner(production: Stack) -> None:
    file = production.folder / "nginx" / "locations" / "own.conf"
    reload = ["exec", "--no-TTY", "proxy", "sh", "/etc/nginx/start.sh", "reload"]
    try:
        file.write_text('location /own/ { return 200 "own"; }\n')
        production.compose(*reload)
        wait_for("the location", lambda: production.get("/own/").text == "own")
    finally:
        file.unlink()
        production.compose(*reload)
    wait_for("its end", lambda: production.get("/own/").status_code == 404)


def test_an_upload_is_served_and_cannot_run_in_a_browser(production: Stack) -> None:
    page = io.BytesIO(b"<script>alert(1)</script>")
    sent = requests.post(
        f"{production.url}/probe/upload", files={"file": ("a.html", page)}, timeout=15
    )
    answer = production.get(sent.json()["url"])
    assert answer.content == page.getvalue()
    assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_body_that_is_too_large_gets_413(production: Stack) -> None:
    files = {"file": ("large", b"x" * (21 * 1024 * 1024))}
    assert (
        requests.post(f"{production.url}/probe/upload", files=files, timeout=60).status_code == 413
    )
    files = {"file": ("fits", b"x" * (19 * 1024 * 1024))}
    assert (
        requests.post(f"{production.url}/probe/upload", files=files, timeout=60).status_code == 200
    )


def test_an_unknown_page_gets_404_and_an_unknown_host_400(production: Stack) -> None:
    assert production.get("/nothing-here").status_code == 404
    assert production.get("/admin/login/", headers={"Host": "evil.example"}).status_code == 400


def test_django_sees_the_clients_address_scheme_and_port_and_no_forged_ones(
    production: Stack,
) -> None:
    honest = production.get("/probe/request").json()
    forged = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "X-Real-IP": "6.6.6.6"}
    assert production.get("/probe/request", headers=forged).json() == honest
    assert honest["host"] == f"localhost:{production.port}"
    assert honest["scheme"] == "http"
    assert re.fullmatch(r"[\d.]+", honest["client"])
    assert honest["client"] == honest["forwarded_for"]


def test_in_production_visitors_see_the_home_page_but_not_the_dashboard(production: Stack) -> None:
    home = production.get("/")
    assert "<h1>It works</h1>" in home.text
    assert "/status/" not in home.text  # links for developers
    assert production.get("/status/").headers["Location"] == "/admin/login/?next=/status/"


def test_staff_logs_in_through_the_proxy_and_its_port(production: Stack) -> None:
    environment = ["--env", "DJANGO_SUPERUSER_PASSWORD=correct-horse-battery"]
    production.compose(
        "run", "--rm", "--no-TTY", *environment, "web", "./manage.py", "createsuperuser",
        "--no-input", "--username=chief", "--email=chief@example.com",
    )  # fmt: skip
    session = requests.Session()
    page = session.get(f"{production.url}/status/", timeout=60)
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)[1]
    form = {"username": "chief", "password": "correct-horse-battery", "csrfmiddlewaretoken": token}
    elsewhere = {"Origin": "http://localhost"}  # another port is another site
    refused = session.post(page.url, data=form, headers=elsewhere, timeout=60)
    assert refused.status_code == 403
    answer = session.post(page.url, data=form, headers={"Origin": production.url}, timeout=60)
    assert answer.url == f"{production.url}/status/"
    assert 'value="default"' in answer.text
    assert "Site administration" in session.get(f"{production.url}/admin/", timeout=60).text


def test_flower_metrics_are_for_the_inside_only(production: Stack) -> None:
    for path in (
        "/flower/metrics",
        "/flower/%6detrics",
        "/flower//metrics",
        "/flower/x/../metrics",
    ):
        auth = (production.settings["FLOWER_USER"], production.settings["FLOWER_PASSWORD"])
        # A prepared request, because requests would tidy the path.
        request = requests.Request("GET", production.url, auth=auth).prepare()
        request.url = production.url + path
        assert requests.Session().send(request, timeout=60).status_code == 403, path
    code = (
        "import urllib.request as r; print(r.urlopen('http://flower:5555/flower/metrics').read())"
    )
    inside = production.compose("exec", "--no-TTY", "web-a", "python", "-c", code)
    assert "flower_worker_online" in inside


def test_the_proxy_follows_its_upstreams_to_other_addresses(production: Stack) -> None:
    def address(service: str) -> str:
        networks = production.containers()[service].attrs["NetworkSettings"]["Networks"]
        return networks[f"{production.slug}_edge"]["IPAddress"]

    services = ["web-a", "web-b", "flower"]
    before = {service: address(service) for service in services}
    production.compose("rm", "--stop", "--force", *services)
    squatters = [
        production.docker.containers.run(
            f"{production.slug}:latest",
            ["sleep", "120"],
            detach=True,
            network=f"{production.slug}_edge",
        )
        for _ in services
    ]
    try:
        try:
            production.compose("restart", "proxy")
            wait_for("the proxy lives alone", lambda: production.health("proxy") == "healthy")
            alone = production.get("/")
            assert alone.status_code == 502
            assert "One moment, please" in alone.text
        finally:
            production.up()  # whatever happened: the tests that follow need it
        assert not {address(service) for service in services} & set(before.values())
        wait_for("web answers", lambda: production.get("/healthz").status_code == 200)
        wait_for("Flower answers", lambda: production.get("/flower/").status_code == 401)
    finally:
        for squatter in squatters:
            squatter.remove(force=True)


# Peers that die -----------------------------------------------------------------------------------


def test_a_web_that_stops_and_starts_takes_no_request_along(production: Stack) -> None:
    answers: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                answers.append(production.get("/healthz").status_code)
            except requests.RequestException:
                answers.append(0)
            time.sleep(0.1)

    def wait_for_answers() -> None:
        enough = len(answers) + 50  # some from each client
        wait_for("50 more answers", lambda: len(answers) >= enough)

    clients = [threading.Thread(target=ask) for _ in range(10)]
    for client in clients:
        client.start()
    try:
        for _ in range(2):
            wait_for_answers()
            production.compose("stop", "web-b")
            # Its address is tried in vain until its name is known to be gone.
            time.sleep(3)
            wait_for_answers()
            production.compose("start", "web-b")
            wait_for("it is back", lambda: production.health("web-b") == "healthy")
        wait_for_answers()
    finally:
        over.set()
        for client in clients:
            client.join()
    assert set(answers) == {200}


@pytest.mark.parametrize(
    ("service", "name", "end", "begin"),
    [
        ("db", "database", "stop", "start"),
        ("db", "database", "pause", "unpause"),
        ("broker", "broker", "stop", "start"),
        ("cache", "cache", "stop", "start"),
    ],
)
def test_readyz_names_the_dead_part_and_recovers(
    production: Stack, service: str, name: str, end: str, begin: str
) -> None:
    wait_for("all ready", lambda: production.get("/readyz").status_code == 200)
    production.compose(end, service)
    try:
        answer = production.get("/readyz")
        assert answer.status_code == 503
        assert [part for part, state in answer.json().items() if state == "down"] == [name]
        assert production.get("/healthz").status_code == 200
        assert (f"{name}-down", "") in problems(production)
    finally:
        production.compose(begin, service)
    wait_for("all ready again", lambda: production.get("/readyz").status_code == 200)
    if end == "pause":
        production.restart_paused(service)


def test_pages_that_fail_are_a_problem(production: Stack) -> None:
    failing = ("requests-fail", "")
    forget_what_was_counted(production)
    for _ in range(10):
        assert production.get("/probe/fail").status_code == 500
    wait_for("it is named", lambda: failing in problems(production))
    printed = follow(production, "requests-fail")
    assert '"status":500' in printed
    assert "MultiValueDictKeyError" in printed
    forget_what_was_counted(production)
    assert failing not in problems(production)


# What an attacker sees ----------------------------------------------------------------------------


def test_nothing_but_the_proxy_is_published(production: Stack) -> None:
    published = {
        service: container.attrs["HostConfig"]["PortBindings"]
        for service, container in production.containers().items()
        if container.attrs["HostConfig"]["PortBindings"]
    }
    assert published == {
        "proxy": {
            f"{inside}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(outside)}]
            for inside, outside in ((8080, production.port), (8443, production.tls_port))
        }
    }


def test_no_process_is_root(production: Stack) -> None:
    for service in LONG_RUNNING:
        processes = production.containers()[service].top(ps_args="-eo uid,pid,args")["Processes"]
        assert processes
        assert "0" not in {uid for uid, *_ in processes}, (service, processes)


def test_no_container_has_capabilities_or_a_writable_root(production: Stack) -> None:
    for service, container in production.containers().items():
        status = container.attrs["HostConfig"]
        assert status["ReadonlyRootfs"], service
        assert status["CapDrop"] == ["ALL"], service
        assert status["CapAdd"] in (None, []), service
        assert status["SecurityOpt"] == ["no-new-privileges:true"], service


def test_the_data_network_has_no_way_out(production: Stack) -> None:
    code = (
        "import socket; s = socket.socket(); s.settimeout(3);"
        "print('out' if s.connect_ex(('192.0.2.1', 9)) not in (101, 113) else 'unreachable')"
    )
    assert (
        production.compose("exec", "--no-TTY", "beat", "python", "-c", code).strip()
        == "unreachable"
    )


def test_no_secret_is_in_an_image_a_process_list_or_a_log(production: Stack) -> None:
    secrets = {
        name: value
        for name, value in production.settings.items()
        if name.endswith(("_PASSWORD", "_KEY"))
    }
    assert len(secrets) == 7
    seen = {"logs": production.compose("logs")}
    for image in ("", "-proxy"):
        name = f"{production.slug}{image}:latest"
        command = ["docker", "history", "--no-trunc", name]
        seen[f"history of {name}"] = subprocess.check_output(command, text=True)
        seen[f"configuration of {name}"] = str(production.docker.images.get(name).attrs)
    for service in LONG_RUNNING:
        container = production.containers()[service]
        seen[f"processes of {service}"] = str(container.top(ps_args="-eo pid,args")["Processes"])
        seen[f"command of {service}"] = str(container.attrs["Config"]["Cmd"])
        seen[f"health check of {service}"] = str(container.attrs["Config"]["Healthcheck"])
    for name, value in secrets.items():
        for where, text in seen.items():
            assert value not in text, f"{name} is in the {where}"


@pytest.mark.parametrize(
    ("image", "base", "megabytes"), [("", "python:3.14-slim", 120), ("-proxy", "nginx:1.30", 5)]
)
def test_the_images_add_little(production: Stack, image: str, base: str, megabytes: int) -> None:
    ours, theirs = (
        production.docker.images.get(name).attrs["Size"]
        for name in (f"{production.slug}{image}:latest", base)
    )
    assert (ours - theirs) / 1e6 <= megabytes


def test_the_image_holds_no_secret_no_tests_and_no_tool(production: Stack) -> None:
    files = production.docker.containers.run(
        f"{production.slug}:latest", ["ls", "-A", "-I", "__pycache__", "/app"], remove=True
    )
    assert sorted(files.decode().split()) == sorted(
        "accounts compose.production.yaml compose.yaml config docs gunicorn.conf.py manage.py nginx"
        " notifications posts probe pyproject.toml requirements-dev.txt requirements.txt stack static"
        " templates".split()
    )
    installed = production.docker.containers.run(
        f"{production.slug}:latest",
        ["sh", "-c", "ls /venv/bin /venv/lib/python*/site-packages"],
        remove=True,
    )
    names = set(installed.decode().split())
    assert {"celery", "django"} <= names
    tools = "debug_toolbar debugpy mypy pip post_office pytest ruff uv watchfiles"
    assert names.isdisjoint(tools.split())
