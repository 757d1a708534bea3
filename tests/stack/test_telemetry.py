"""Requests and tasks are traced: what the OpenTelemetry Collector gets of web and workers."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from docker.models.containers import Container

from .stack import PRODUCTION, Stack, wait_for

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
WORKERS = ["worker-default", "worker-crawl", "worker-notify"]


@dataclass
class Span:
    """What the collector prints of one."""

    service: str
    name: str
    trace: str
    parent: str
    id: str
    failed: bool
    attributes: dict[str, str]


def attributes(text: str) -> dict[str, str]:
    """Parse lines such as "-> queue: Str(default)"."""
    return dict(re.findall(r"-> ([\w.]+): \w+\((.*)\)", text))


def spans(collector: Container) -> list[Span]:
    """Return all that the collector has printed."""
    found = []
    for resource in collector.logs().decode().split("ResourceSpans #")[1:]:
        about, *rest = re.split(r"\nSpan #\d+\n", resource)
        service = attributes(about)["service.name"]
        for text in rest:
            facts = dict(re.findall(r"^ +([\w ]+?) *: ?(.*)$", text, re.MULTILINE))
            ids = (facts["Trace ID"], facts["Parent ID"], facts["ID"])
            failed = facts["Status code"] == "Error"
            found.append(Span(service, facts["Name"], *ids, failed, attributes(text)))
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A project that has followed docs/logs.md, and the collector at the address in its .env."""
    stack = Stack(tmp_path_factory.mktemp("telemetry"), PRODUCTION, example="false")
    tag = f"{stack.slug}-collector"
    collector = None
    try:
        stack.add_app(HERE / "probe")
        manual = (stack.folder / "docs" / "logs.md").read_text()
        packages = re.findall(r'^    "(opentelemetry-[a-z-]+)>=', manual, re.MULTILINE)
        assert len(packages) == 2
        stack.edit(
            "Dockerfile",
            "COPY --from=dependencies /venv /venv\n",
            "COPY --from=dependencies /venv /venv\n"
            f"RUN pip --python /venv/bin/python install --no-cache-dir {' '.join(packages)}\n",
        )
        stack.set(OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4318", WORKER_CONCURRENCY=1)
        stack.shell(f"docker build --quiet --network=host --tag={tag} {HERE / 'otel'}")
        stack.compose("build", "migrate", "proxy")
        stack.compose("create")
        collector = stack.docker.containers.create(tag, name=tag)
        for network in ("edge", "outside"):
            stack.docker.networks.get(f"{stack.slug}_{network}").connect(
                collector, aliases=["collector"]
            )
        collector.start()
        stack.up()
        yield stack
    finally:
        if collector:
            collector.remove(force=True)
        stack.remove()


@pytest.fixture
def collector(stack: Stack) -> Container:
    """Return the collector."""
    return stack.docker.containers.get(f"{stack.slug}-collector")


def trace_of(collector: Container, request_id: str, count: int) -> list[Span]:
    """Wait until so many spans of a request have arrived; return them in the order of sending."""

    def found() -> list[Span]:
        return [span for span in spans(collector) if span.attributes["request_id"] == request_id]

    wait_for("its spans", lambda: len(found()) >= count)
    return found()


def test_a_request_and_all_its_tasks_are_one_trace(stack: Stack, collector: Container) -> None:
    forged = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
    answer = stack.get("/probe/again", headers=forged | {"User-Agent": "of-the-header"})
    found = trace_of(collector, answer.headers["X-Request-ID"], 4)
    by_id = {span.id: span for span in found}
    assert len({span.trace for span in found} - {"1" * 32}) == 1
    assert sorted(
        (span.service, span.name, span.parent and by_id[span.parent].name, span.failed)
        for span in found
    ) == [
        ("web", "GET probe/again", "", False),
        ("worker-default", "probe.tasks.again", "GET probe/again", False),
        ("worker-default", "probe.tasks.again", "probe.tasks.again", False),
        ("worker-notify", "probe.tasks.sleep", "probe.tasks.again", False),
    ]
    states = sorted(span.attributes.get("celery.state", "") for span in found)
    assert states == ["", "RETRY", "SUCCESS", "SUCCESS"]
    # Each log line of it names the trace.
    logged = [
        json.loads(line.split("|", 1)[1])
        for line in stack.compose("logs", "--no-color").splitlines()
        if answer.headers["X-Request-ID"] in line
    ]
    python = {line.get("trace_id", "") for line in logged if not line["logger"].startswith("nginx")}
    assert python == {found[0].trace}


def test_a_span_holds_nothing_of_the_user(stack: Stack, collector: Container) -> None:
    answer = requests.post(
        f"{stack.url}/probe/fail?mail=of-the-query",
        data={"mail": "of-the-form"},
        cookies={"session": "of-the-cookie"},
        headers={"User-Agent": "of-the-agent"},
        auth=("user", "of-the-header"),
        timeout=60,
    )
    # Whichever process sent first.
    found = sorted(
        trace_of(collector, answer.headers["X-Request-ID"], 2), key=lambda span: span.name
    )
    assert [(span.name, span.failed) for span in found] == [
        ("POST probe/fail", True),
        ("probe.tasks.fail", True),
    ]
    assert found[0].attributes["http.response.status_code"] == "500"
    printed = collector.logs().decode()
    assert re.findall(r"of-the-\w+|fails", printed) == []
    secrets = [value for name, value in stack.settings.items() if name.endswith(("_KEY", "WORD"))]
    assert len(secrets) == 6
    assert [value for value in secrets if value in printed] == []


def test_a_process_that_ends_sends_its_last_spans(stack: Stack, collector: Container) -> None:
    answer = stack.get("/probe/again")
    name = answer.headers["X-Request-ID"]
    wait_for("the last task", lambda: name in stack.compose("logs", "worker-notify"))
    # Sooner than the five seconds between two batches.
    stack.compose("stop", "web-a", "web-b", *WORKERS)
    try:
        time.sleep(1)
        found = [span for span in spans(collector) if span.attributes["request_id"] == name]
        assert len(found) == 4
    finally:
        stack.start("web-a", "web-b", *WORKERS)


def test_without_the_collector_the_site_works_and_says_so(
    stack: Stack, collector: Container
) -> None:
    collector.stop(timeout=0)
    try:
        task = stack.send("crawl", steps=1)
        assert stack.get("/probe/again").status_code == 200
        assert stack.result(task)
        wait_for("a line", lambda: "opentelemetry" in stack.compose("logs", "worker-crawl"))
    finally:
        collector.start()
