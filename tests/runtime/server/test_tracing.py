"""The engine's server takes part in its caller's trace."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from quire_runtime.server.app import create_app
from quire_runtime.server.config import ServerConfig

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An address that takes OTLP over HTTP, and the spans that came."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            spans.extend(s for r in told.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    server.shutdown()
    thread.join()
    server.server_close()


async def ask(app: Any, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as http:
        return await http.post(path, json={"model": "m", "prompt": "secret words"}, headers=headers)


async def test_a_request_is_a_span_under_the_gateways(collector):
    url, spans = collector
    # An app without an engine refuses, through all of its layers.
    app = create_app(None, None, ServerConfig.of(served_model_name=["m"], otlp_traces_endpoint=url))
    answer = await ask(app, "/v1/completions", **CONTEXT)
    assert answer.status_code == 503
    app.state.tracing.close()
    (span,) = spans
    assert span.name == "engine POST /v1/completions"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER)
    assert [event.name for event in span.events] == ["first byte"]
    told = {each.key: each.value.string_value or each.value.int_value for each in span.attributes}
    assert told == {"http.response.status_code": 503, "quire.request_id": answer.headers["x-request-id"]}
    assert span.status.code == 2


async def test_probes_make_no_spans(collector):
    url, spans = collector
    app = create_app(None, None, ServerConfig.of(served_model_name=["m"], otlp_traces_endpoint=url))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as http:
        await http.get("/health")
    app.state.tracing.close()
    assert spans == []
