"""Traces are sent when .env says where to, and cost nothing otherwise."""

import subprocess
import sys

import pytest

LOAD = "import os, sys, django; sys.modules.update(eval(sys.argv[1])); django.setup(); "
LOADED = "print(any(name.startswith('opentelemetry') for name in sys.modules))"


def load(modules: str, then: str = "") -> subprocess.CompletedProcess[str]:
    """Start Django in a process whose modules begin with these."""
    command = [sys.executable, "-c", LOAD + then, modules]
    return subprocess.run(command, capture_output=True, text=True)


def test_without_an_address_nothing_of_opentelemetry_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert load("{}", LOADED).stdout == "False\n"


@pytest.mark.parametrize("service", ["web", "worker", "beat", "migrate"])
def test_a_package_that_is_missing_is_named_at_the_start(
    monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    monkeypatch.setenv("SERVICE", service)
    done = load("{'opentelemetry': None}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("django.core.exceptions.ImproperlyConfigured: OTEL_EXPORTER_OTLP")
    assert 'see docs/logs.md, "OpenTelemetry".' in last
    assert "secret" not in done.stderr
