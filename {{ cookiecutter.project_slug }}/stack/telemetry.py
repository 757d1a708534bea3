"""
Traces for OpenTelemetry: https://opentelemetry.io/docs/languages/python

Each request is a span, and each task is one below the span that sent it. They hold names and what a log
line has; no path, query string, header, address, argument or text of an error.
"""

import logging
import signal
from types import FrameType, FunctionType
from typing import Any

from celery.signals import (
    before_task_publish,
    task_postrun,
    task_prerun,
    worker_process_init,
    worker_process_shutdown,
)
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_only_middleware

from . import logs
from .environment import QUEUES, SERVICE, env
from .middleware import GetResponse

try:
    from opentelemetry import context, propagate, trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError as error:
    raise ImproperlyConfigured(
        f'OTEL_EXPORTER_OTLP_ENDPOINT is set in .env, and a package is missing ({error}): see docs/logs.md, "OpenTelemetry".'
    ) from error

tracer = trace.get_tracer("stack")
make_record = logging.getLogRecordFactory()


def start() -> None:
    """Trace the requests of web and the tasks of workers; beat, without outbound access, sends nothing."""
    if SERVICE == "web":
        settings.MIDDLEWARE = ["stack.telemetry.trace_requests", *settings.MIDDLEWARE]
        end_with(send())
    elif SERVICE == "worker":
        task_prerun.connect(task_started)
        task_postrun.connect(task_ended)
        # A child has a thread of its own that sends; the parent, which forks, has none.
        worker_process_init.connect(send)
    before_task_publish.connect(add_trace)
    logging.setLogRecordFactory(make_record_with_trace_id)


def send(**kwargs: object) -> TracerProvider:
    """Send the spans of this process, in batches, to where the variables OTEL_… say."""
    resource = {
        "service.name": "-".join([SERVICE, *QUEUES]),  # as in compose.yaml
        "service.namespace": settings.PROJECT_NAME,
        "service.version": env("IMAGE_TAG", default=""),
    }
    provider = TracerProvider(resource=Resource.create(resource))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    # A child of a worker ends without atexit, by which other processes send the rest.
    worker_process_shutdown.connect(lambda **kwargs: provider.shutdown(), weak=False)
    return provider


def end_with(provider: TracerProvider) -> None:
    """Send the rest before SIGTERM, with which uvicorn ends its process when all requests are done."""
    before = signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: FrameType | None) -> None:
        provider.shutdown()
        if isinstance(before, FunctionType):  # that of gunicorn.conf.py
            before(number, frame)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    # uvicorn's own is a method: it would end the traces before the requests.
    if before is signal.SIG_DFL or isinstance(before, FunctionType):
        signal.signal(signal.SIGTERM, end)


@sync_only_middleware
def trace_requests(get_response: GetResponse) -> GetResponse:
    """Make a span of each request, which begins a trace: what a client sends of one is ignored."""

    def middleware(request: HttpRequest) -> HttpResponse:
        kind = trace.SpanKind.SERVER
        with tracer.start_as_current_span(str(request.method), context.Context(), kind) as span:
            response = get_response(request)
            if match := request.resolver_match:
                span.update_name(f"{request.method} {match.route}")
                span.set_attribute("http.route", match.route)
            span.set_attribute("http.request.method", str(request.method))
            span.set_attribute("http.response.status_code", response.status_code)
            span.set_attributes(logs.fields.get())
            if response.status_code >= 500:
                span.set_status(trace.StatusCode.ERROR)
            return response

    return middleware


def add_trace(headers: dict[str, Any], **kwargs: object) -> None:
    """Add the current span to the message of a task; a receiver of before_task_publish."""
    propagate.inject(headers)


def task_started(task: Any, **kwargs: object) -> None:
    """Begin the span of a task; a receiver of task_prerun."""
    parent, fields = propagate.extract(task.request), logs.fields.get()
    span = tracer.start_span(task.name, parent, trace.SpanKind.CONSUMER, fields)
    task.request.span = span, context.attach(trace.set_span_in_context(span))


def task_ended(task: Any, state: str = "", **kwargs: object) -> None:
    """End the span of a task; a receiver of task_postrun."""
    span, token = task.request.span
    span.set_attribute("celery.state", state)
    if state == "FAILURE":
        span.set_status(trace.StatusCode.ERROR)
    span.end()
    context.detach(token)


def make_record_with_trace_id(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """Return a log record with the field trace_id, where there is a trace."""
    record = make_record(*args, **kwargs)
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        record.trace_id = f"{span.trace_id:032x}"
    return record
