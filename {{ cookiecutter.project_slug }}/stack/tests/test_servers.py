"""Servers of the owner's own in .env: they are found, and verified where the URL asks for TLS."""

import http.client
import ssl

import pytest
from kombu import Connection

from stack import checks
from stack.brokers import rabbitmq

from .test_settings import show

NOT_STARTED = 'Cannot find the host "db" from POSTGRES_HOST in .env: it is not started.'
SERVERS = ("POSTGRES_HOST", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL")


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return what sets variables, without those for tests."""
    for name in SERVERS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("POSTGRES_HOST", "", ""),
        ("POSTGRES_HOST", "localhost", ""),
        ("POSTGRES_HOST", "/var/run/postgresql", ""),
        ("POSTGRES_HOST", "db", NOT_STARTED),
        ("POSTGRES_HOST", "localhost,b.invalid", '"b.invalid" from POSTGRES_HOST in .env: '),
        # An address that no route leads to: connections to it are not allowed.
        ("POSTGRES_HOST", "255.255.255.255", "in .env: there is no route to it."),
        ("CELERY_BROKER_URL", "redis://:x@broker/0", '"broker" from CELERY_BROKER_URL in .env: it'),
        ("CELERY_BROKER_URL", "amqps://a:x@localhost;amqps://b.invalid//", '"b.invalid" from CEL'),
        ("CELERY_RESULT_BACKEND", "rediss://:x@b.invalid:6380/1?x=a;b", '"b.invalid" from CEL'),
        ("CELERY_RESULT_BACKEND", "django-db", ""),
        ("CELERY_RESULT_BACKEND", "other://b.invalid/", ""),
        ("CACHE_URL", "redis://b.invalid", '"b.invalid" from CACHE_URL in .env: '),
    ],
)
def test_a_host_in_env_that_cannot_be_found_is_named(
    env: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    env.setenv(name, value)
    found = [error.msg for error in checks.servers_are_found(databases=["default"])]
    assert len(found) == bool(sentence)
    assert sentence in "".join(found)


@pytest.mark.parametrize(
    ("broker", "url", "results"),
    [
        ("redis", "rediss://b/0", "rediss://b/0"),
        ("redis", "amqps://b//", "redis://c/3"),
        ("rabbitmq", "redis://b/0", "redis://b/0"),
        ("rabbitmq", "", "redis://c/3"),
    ],
)
def test_results_are_where_the_owner_has_a_redis(
    env: pytest.MonkeyPatch, broker: str, url: str, results: str
) -> None:
    env.setenv("BROKER", broker)
    env.setenv("CELERY_BROKER_URL", url)
    env.setenv("CACHE_URL", "redis://c/3")
    assert show("", "app.conf.result_backend") == results


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "CERT_REQUIRED"),
        ("?ssl_ca_certs=/authority.pem", "CERT_REQUIRED"),
        ("?ssl_cert_reqs=none", "CERT_NONE"),
    ],
)
@pytest.mark.usefixtures("env")
def test_rediss_verifies_the_server_unless_the_url_says_otherwise(
    query: str, expected: str
) -> None:
    url = f"rediss://host/0{query}"
    override = f"CELERY_BROKER_URL = CELERY_RESULT_BACKEND = {url!r}"
    results = "{n: v for n, v in app.backend.connparams.items() if n.startswith('ssl_')}"
    for options in ("app.connection_for_write().ssl", results):
        made = f"__import__('redis').SSLConnection(**{options}).cert_reqs.name"
        assert show(override, made) == expected


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", {"server_hostname": None}),
        ("?ssl_ca_certs=/a.pem", {"server_hostname": None, "ca_certs": "/a.pem"}),
        ("?ssl_cert_reqs=none", {"cert_reqs": ssl.CERT_NONE}),
        ("?ssl_check_hostname=false", {}),
    ],
)
def test_amqps_verifies_the_server_unless_the_url_says_otherwise(
    query: str, options: dict[str, object]
) -> None:
    connection = Connection(f"amqps://host//{query}")
    assert isinstance(connection.transport, rabbitmq.TLSTransport)
    assert rabbitmq.tls(connection.ssl) == options


@pytest.mark.parametrize(
    ("scheme", "api", "port"),
    [
        ("amqps", http.client.HTTPSConnection, 15671),
        ("amqp", http.client.HTTPConnection, 15672),
    ],
)
def test_rabbitmq_gets_its_password_by_tls_where_its_queues_are(
    scheme: str, api: type, port: int
) -> None:
    found = rabbitmq.management_api(Connection(f"{scheme}://host//"), 1)
    assert (type(found), found.port) == (api, port)
