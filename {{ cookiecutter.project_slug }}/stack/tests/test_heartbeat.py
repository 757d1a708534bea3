"""What the watchdog learns from the process that it watches."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from celery import current_app
from celery.beat import PersistentScheduler, Scheduler, Service
from celery.signals import beat_init

from stack import heartbeat
from stack.checks import PROJECT


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("redis://:x@host/0", "host 6379 plain"),
        ("rediss://:x@host:7000/0", "host 7000 tls"),
        ("redis://[::1]:6380/0", "::1 6380 plain"),
        ("amqp://a:x@host//", "host 5672 plain"),
        ("amqps://a:x@host//", "host 5671 tls"),
    ],
)
def test_the_address_of_a_broker_has_no_password(url: str, line: str) -> None:
    assert heartbeat.address(url) == f"{line}\n"


def answer(connection: socket.socket) -> None:
    """Answer as Redis does without a password."""
    if b"PING" in connection.recv(100):
        connection.sendall(b"-NOAUTH Authentication required.\r\n")


def answer_tls(connection: socket.socket) -> None:
    """Answer as a server does that has no certificate: with an alert."""
    with suppress(ssl.SSLError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(connection, server_side=True)


def be_silent(connection: socket.socket) -> None:
    """Wait until the client goes."""
    while connection.recv(100):
        pass


@pytest.fixture
def listening() -> Iterator[Callable[..., int]]:
    """Return the port of a server that does something with each connection."""
    servers = []

    def listen(serve: Callable[[socket.socket], None]) -> int:
        server = socket.create_server(("localhost", 0))
        servers.append(server)

        def accept() -> None:
            with suppress(OSError):  # it is closed
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(ConnectionError):
                        serve(connection)

        threading.Thread(target=accept, daemon=True).start()
        return server.getsockname()[1]

    yield listen
    for server in servers:
        server.close()
    heartbeat.BROKER.unlink(missing_ok=True)


def answers(*lines: str) -> bool:
    """Return whether the watchdog gets an answer of a broker in one of these lines."""
    heartbeat.BROKER.write_text("".join(f"{line}\n" for line in lines))
    watchdog = [str(PROJECT / "stack/watchdog"), "broker-answers"]
    return not subprocess.run(watchdog, stderr=subprocess.DEVNULL).returncode


def test_the_watchdog_knows_whether_a_broker_answers(listening: Callable[..., int]) -> None:
    plain = f"localhost {listening(answer)} plain"
    tls = f"localhost {listening(answer_tls)} tls"
    silent = listening(be_silent)
    none = "localhost 1 plain"
    assert answers(plain)
    assert answers(tls)
    assert not answers(f"localhost {silent} plain")
    assert not answers(f"localhost {silent} tls")
    assert not answers(none)
    assert answers(none, plain)


@pytest.mark.parametrize("scheduler", [Scheduler, PersistentScheduler])
def test_each_scheduler_of_beat_has_a_heartbeat(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheduler: type[Scheduler]
) -> None:
    for name in ("FILE", "BROKER"):
        monkeypatch.setattr(heartbeat, name, tmp_path / name)
    file = str(tmp_path / "schedule")
    beat = Service(current_app, schedule_filename=file, scheduler_cls=scheduler)
    beat_init.send(beat)
    assert not heartbeat.FILE.exists()
    assert beat.scheduler.tick() <= 10
    assert heartbeat.FILE.exists()
    beat.sync()
