import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from stack import alerts

# What Prometheus 3.5 answers.
ANSWER = {
    "status": "success",
    "data": {
        "alerts": [
            {
                "labels": {
                    "alertname": "QueueGrows",
                    "problem": "queue-grows",
                    "queue": "exports",
                    "severity": "warning",
                    "subject": "exports",
                },
                "annotations": {"summary": "The queue exports grows."},
                "state": "firing",
                "activeAt": "2026-11-29T12:00:00Z",
                "value": "1.2e+02",
            },
            {
                "labels": {"alertname": "PagesSlow", "problem": "pages-slow"},
                "annotations": {"summary": "Pages are slow."},
                "state": "pending",
                "activeAt": "2026-11-29T12:00:00Z",
                "value": "3e+00",
            },
            {
                "labels": {"alertname": "StackProblem", "problem": "broker-down"},
                "annotations": {"summary": "The broker is down."},
                "state": "firing",
                "activeAt": "2026-11-29T12:00:00Z",
                "value": "1e+00",
            },
        ]
    },
}


class Prometheus(http.server.BaseHTTPRequestHandler):
    """Answers as Prometheus does; with `broken` as something else might."""

    broken: bytes | None = None

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200 if self.path == alerts.PATH else 404)
        self.end_headers()
        self.wfile.write(self.broken or json.dumps(ANSWER).encode())

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Prometheus)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(alerts, "HOST", "127.0.0.1")
    monkeypatch.setattr(alerts, "PORT", server.server_port)
    yield
    server.shutdown()
    server.server_close()


def test_alerts_that_fire_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPOSE_PROFILES", "sample, monitoring")
    assert alerts.firing() == [("queue-grows", "exports", "The queue exports grows.")]


@pytest.mark.parametrize("profiles", [None, "", "sample", "no-monitoring"])
def test_without_the_profile_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch, profiles: str | None
) -> None:
    monkeypatch.delenv("COMPOSE_PROFILES", raising=False)
    if profiles is not None:
        monkeypatch.setenv("COMPOSE_PROFILES", profiles)
    assert alerts.firing() == []


@pytest.mark.parametrize("broken", [b"<html>", b"{}", b"[]", b'{"data": {"alerts": [{}]}}'])
def test_without_an_answer_no_alert_fires(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: bytes
) -> None:
    monkeypatch.setenv("COMPOSE_PROFILES", "monitoring")
    monkeypatch.setattr(Prometheus, "broken", broken)
    assert alerts.firing() == []
    assert "does not tell its alerts" in caplog.text
    monkeypatch.setattr(alerts, "PORT", 1)
    assert alerts.firing() == []
