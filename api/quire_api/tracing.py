"""Spans of requests, sent to a collector by OTLP over HTTP where one is named; W3C trace context between processes.

Needs the extra `tracing`, which is imported only then. Without a collector nothing is made, and a client's own trace
context travels on as it came.
"""

from collections.abc import Iterable
from typing import Any, Literal
from urllib.parse import urlsplit

from quire_api.errors import UserError

CONTEXT_HEADERS = frozenset({b"traceparent", b"tracestate"})


class TracingNotInstalled(UserError):
    """Spans are to be exported, and the libraries for it are not there."""


class BadTracesEndpoint(UserError):
    """Spans are to be exported to what is no HTTP address."""


class Span:
    """One piece of work of one request; `end` it once."""

    def __init__(self, tracing: "Tracing", span: Any) -> None:
        self._tracing = tracing
        self._span = span

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What makes the next process's spans this one's children."""
        carrier: dict[str, str] = {}
        self._tracing.propagator.inject(carrier, context=self._tracing.context_of(self._span))
        return [(name.encode(), value.encode()) for name, value in carrier.items()]

    def child(self, name: str, kind: Literal["server", "client"]) -> "Span":
        return self._tracing.begin_in(self._tracing.context_of(self._span), name, kind)

    def event(self, name: str) -> None:
        """Something happened now."""
        self._span.add_event(name)

    def end(self, error: str = "", **attributes: str | int | float) -> None:
        """It is over; attributes' names have `__` for `.`, and empty ones are left out."""
        self._span.set_attributes({name.replace("__", "."): each for name, each in attributes.items() if each != ""})
        if error:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()


class Tracing:
    """Makes spans of `service` and exports them in the background, in batches."""

    def __init__(self, endpoint: str, service: str) -> None:
        """endpoint: where OTLP/HTTP is taken, for example http://collector:4318/v1/traces.

        Raises:
            BadTracesEndpoint, TracingNotInstalled
        """
        if not _is_http(endpoint):
            message = f"{endpoint!r} is no HTTP address. Write it as http://collector:4318/v1/traces."
            raise BadTracesEndpoint(f"--otlp-traces-endpoint: {message}")
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            message = "exporting traces needs OpenTelemetry: pip install 'quire[tracing]', or leave the endpoint empty."
            raise TracingNotInstalled(message) from None
        # An own provider, not the process's: two servers may live in one process.
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("quire")
        self._trace = trace
        self.propagator = TraceContextTextMapPropagator()

    def begin(self, name: str, headers: Iterable[tuple[bytes, bytes]]) -> Span:
        """A server's span, in the trace that the request's `headers` name, or else in a new one."""
        carrier = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers if key in CONTEXT_HEADERS}
        return self.begin_in(self.propagator.extract(carrier), name, "server")

    def begin_in(self, context: Any, name: str, kind: Literal["server", "client"]) -> Span:
        """A span in `context`, of `propagator` or of a span."""
        return Span(self, self._tracer.start_span(name, context, self._trace.SpanKind[kind.upper()]))

    def context_of(self, span: Any) -> Any:
        return self._trace.set_span_in_context(span)

    def close(self) -> None:
        """Export what has ended; may take as long as the collector does."""
        self._provider.shutdown()


def make_tracing(endpoint: str, service: str) -> Tracing | None:
    """None: nobody asked for it.

    Raises:
        BadTracesEndpoint, TracingNotInstalled
    """
    return Tracing(endpoint, service) if endpoint else None


def without_context(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """`headers` without a trace context, to be given another one."""
    return [header for header in headers if header[0] not in CONTEXT_HEADERS]


def _is_http(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
