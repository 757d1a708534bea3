"""Database, broker and cache are servers of the owner's own, with TLS, in another network."""

import json
import shutil
from collections.abc import Iterator

import pytest
import yaml

from . import acme
from .stack import PRODUCTION, Stack, wait_for
from .test_backup import ops

QUEUES = ["default", "crawl", "notify"]
CONTAINERS = {"db", "broker", "cache"}
HOST = "servers.example"  # of all of them
PASSWORD = "of-the%servers"
QUOTED = "of-the%25servers"
REDIS = {
    "image": "redis:8.0",
    "command": [
        *("redis-server", "--save", "", "--port", "0", "--tls-port", "6379", "--requirepass"),
        *(PASSWORD, "--tls-cert-file", "/tls/cert.pem", "--tls-key-file", "/tls/key.pem"),
        *("--tls-auth-clients", "no"),
    ],
    "ports": ["6379"],
}
RABBITMQ = {
    "image": "rabbitmq:4.3-management",
    "environment": {"RABBITMQ_DEFAULT_USER": "shop", "RABBITMQ_DEFAULT_PASS": PASSWORD},
    "ports": ["5671", "15671"],
    "healthcheck": {
        "test": ["CMD", "rabbitmq-diagnostics", "--quiet", "check_port_listener", "5671"],
        "start_period": "90s",
        "start_interval": "3s",
    },
    "volumes": ["./tls:/tls:ro", "./rabbitmq.conf:/etc/rabbitmq/conf.d/90-tls.conf:ro"],
}
RABBITMQ_CONF = """
listeners.tcp = none
listeners.ssl.default = 5671
ssl_options.certfile = /tls/cert.pem
ssl_options.keyfile = /tls/key.pem
management.ssl.port = 15671
management.ssl.certfile = /tls/cert.pem
management.ssl.keyfile = /tls/key.pem
"""
POSTGRES = {
    "image": "postgres:18",
    "environment": {
        "POSTGRES_DB": "shop",
        "POSTGRES_USER": "shop",
        "POSTGRES_PASSWORD": PASSWORD,
    },
    "command": [
        *("postgres", "-c", "ssl=on", "-c", "ssl_cert_file=/tls/cert.pem"),
        *("-c", "ssl_key_file=/tls/key.pem"),
    ],
    "ports": ["5432"],
    "healthcheck": {
        "test": ["CMD", "pg_isready", "--quiet", "--host", "localhost"],
        "start_period": "60s",
        "start_interval": "1s",
    },
}


class Servers:
    """A compose project of its own with the three servers; a port of each is published."""

    def __init__(self, stack: Stack, broker: dict) -> None:
        self.stack, self.broker = stack, broker
        self.folder = stack.folder.parent / "servers"
        tls = self.folder / "tls"
        tls.mkdir(parents=True)
        acme.self_signed(tls, HOST)
        shutil.copy(tls / "cert.pem", stack.folder / "authority.pem")
        shutil.chown(tls / "key.pem", 999, 999)  # PostgreSQL refuses a key that others can read
        (self.folder / "rabbitmq.conf").write_text(RABBITMQ_CONF)
        services = {"postgres": POSTGRES, "cache": REDIS, "broker": broker}
        services = {
            name: {"volumes": ["./tls:/tls:ro"], **service} for name, service in services.items()
        }
        self.name = f"{stack.slug}_servers"
        model = {"name": self.name, "services": services}
        (self.folder / "servers.yaml").write_text(yaml.safe_dump(model))

    def compose(self, *arguments: str) -> str:
        """Run compose in this project."""
        return self.stack.compose(
            f"--file={self.folder}/servers.yaml", f"--project-name={self.name}", *arguments
        )

    def port(self, service: str, port: int) -> str:
        """Return the port of the host that leads to one of a service."""
        return self.compose("port", service, str(port)).strip().rpartition(":")[2]


def use(stack: Stack, servers: Servers) -> None:
    """Set .env as docs/production.md says; all services know the name of the servers."""
    authority = "ssl_ca_certs=/app/authority.pem"
    (ignore := stack.folder / ".dockerignore").write_text(ignore.read_text() + "!authority.pem\n")
    if servers.broker is REDIS:
        address = f"{HOST}:{servers.port('broker', 6379)}"
        stack.set(CELERY_BROKER_URL=f"'rediss://:{QUOTED}@{address}/0?{authority}'")
    else:
        address = f"{HOST}:{servers.port('broker', 5671)}"
        stack.set(CELERY_BROKER_URL=f"'amqps://shop:{QUOTED}@{address}//?{authority}'")
        stack.set(RABBITMQ_MANAGEMENT_PORT=servers.port("broker", 15671))
    cache = f"{HOST}:{servers.port('cache', 6379)}"
    stack.set(
        BEAT_INTERNAL="false",
        POSTGRES_HOST=HOST,
        POSTGRES_PORT=servers.port("postgres", 5432),
        POSTGRES_DB="shop",
        POSTGRES_USER="shop",
        POSTGRES_PASSWORD=PASSWORD,
        PGSSLMODE="verify-full",
        PGSSLROOTCERT="/app/authority.pem",
        CACHE_URL=f"'rediss://:{QUOTED}@{cache}/0?{authority}'",
        COMPOSE_FILE=f"{PRODUCTION}:hosts.yaml",
    )
    workers = [f"worker-{queue}" for queue in QUEUES]
    found = {"extra_hosts": [f"{HOST}:host-gateway"]}
    names = ["web", "web-a", "web-b", *workers, "beat", "flower", "migrate"]
    (stack.folder / "hosts.yaml").write_text(
        yaml.safe_dump({"services": dict.fromkeys(names, found)})
    )


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def managed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stack, Servers]]:
    """A running stack on servers elsewhere."""
    stack = Stack(tmp_path_factory.mktemp("managed"), PRODUCTION, example="false")
    stack.edit(
        "config/settings.py", '"schedule": 24 * 3600}', '"schedule": 5}'
    )  # so that beat ticks
    servers = Servers(stack, {"redis": REDIS, "rabbitmq": RABBITMQ}[request.param])
    try:
        servers.compose("up", "--detach", "--wait")
        use(stack, servers)
        stack.up("--build")
        yield stack, servers
    finally:
        stack.remove()
        servers.compose("down", "--volumes", "--timeout=0")


@pytest.mark.long
def test_the_site_uses_servers_elsewhere_by_tls(managed: tuple[Stack, Servers]) -> None:
    stack, _ = managed
    assert not CONTAINERS & stack.containers().keys()
    assert stack.get("/").status_code == 200
    assert json.loads(stack.get("/readyz").text) == dict.fromkeys(
        ["database", "broker", "cache"], "ok"
    )
    ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    code = f"from django.db import connection; cursor = connection.cursor(); cursor.execute({ssl!r}); print(cursor.fetchone())"
    assert stack.python(code) == "(True,)"
    for queue in QUEUES:
        assert stack.result(stack.send(queue, steps=1)).startswith("Done by"), queue
    tick = "stack.tasks.clear_sessions"
    wait_for("beat's task", lambda: tick in stack.compose("logs", "worker-default"))
    addresses = stack.compose("exec", "--no-TTY", "worker-crawl", "cat", "/tmp/broker")
    assert addresses.split()[::2] == [HOST, "tls"]
    assert [line.split()[0] for line in stack.manage("queues").splitlines()[1:4]] == QUEUES
    stack.compose("run", "--rm", "--no-TTY", "web", "./manage.py", "check", "--database=default")
    # Nothing but what is verified is used.
    for change in ("PGSSLROOTCERT", "CELERY_BROKER_URL", "CACHE_URL"):
        check_refused(stack, change)


def check_refused(stack: Stack, name: str) -> None:
    """Raise AssertionError if a server is used that an authority of no relation has signed."""
    value = (
        stack.settings[name]
        .strip("'")
        .replace("/app/authority.pem", "/etc/ssl/certs/ca-certificates.crt")
    )
    code = (
        "import asyncio; from stack.health import readyz; print(asyncio.run(readyz())[2].decode())"
    )
    run = ("run", "--rm", "--no-deps", "--no-TTY", f"--env={name}={value}", "web")
    printed = stack.compose(*run, "./manage.py", "shell", "--no-imports", "--command", code)
    part = {"P": "database", "C": "broker" if "BROKER" in name else "cache"}[name[0]]
    found = json.loads(printed.splitlines()[-1])
    assert [each for each, state in found.items() if state != "ok"] == [part], name


@pytest.mark.long
def test_commands_of_ops_leave_servers_elsewhere_alone(managed: tuple[Stack, Servers]) -> None:
    stack, servers = managed
    file = stack.folder.parent / "none.tar"
    for command in (["backup"], ["rotate", "BROKER_PASSWORD"], ["restore", str(file), "--yes"]):
        done = ops(stack, *command)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "there is nothing to do" in ops(stack, "upgrade-data").stdout
    before = stack.settings
    if servers.broker is REDIS:  # the slowest one; it replaces all containers
        done = ops(stack, "rotate", "FLOWER_PASSWORD")
        assert done.returncode == 0, done.stdout + done.stderr
    changed = [name for name, value in stack.settings.items() if before.get(name) != value]
    assert changed == ["FLOWER_PASSWORD"] * (servers.broker is REDIS)
    for command in ("revive", "status"):
        done = ops(stack, command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not CONTAINERS & stack.containers().keys()


@pytest.mark.long
def test_the_site_recovers_when_the_broker_elsewhere_does(managed: tuple[Stack, Servers]) -> None:
    stack, servers = managed
    servers.compose("pause", "broker")
    wait_for("not ready", lambda: stack.get("/readyz").status_code == 503)
    servers.compose("unpause", "broker")
    wait_for("ready", lambda: stack.get("/readyz").status_code == 200)
    for queue in QUEUES:
        assert stack.result(stack.send(queue, steps=1)).startswith("Done by"), queue
    assert {stack.health(f"worker-{queue}") for queue in QUEUES} == {"healthy"}


def test_a_name_of_an_old_project_is_reported_in_one_sentence(production: Stack) -> None:
    env = production.folder / ".env"
    before = env.read_text()
    production.set(POSTGRES_HOST="postgres")
    try:
        run = ("run", "--rm", "--no-deps", "--no-TTY", "migrate")
        printed = production.compose(*run, check=False)
    finally:
        env.write_text(before)
    assert 'Cannot find the host "postgres" from POSTGRES_HOST in .env' in printed
    assert "Without this line it is the container db." in printed
    assert "Traceback" not in printed
