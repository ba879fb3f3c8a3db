"""The agent's pages: /progress, /healthz and /metrics."""

import hmac
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from quire_api.wire import HEADER_INTERNAL_KEY
from quire_runtime.agent.progress import Meter, Phase

TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Pages:
    """An HTTP server on a thread of its own.

    GET /progress is a `Standing` as JSON, for whoever sends the internal key where there is one; /healthz is 200 once
    the weights are complete and 503 before; /metrics is Prometheus text.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, host: str, port: int, meter: Meter, internal_key: str = "") -> None:
        registry = _registry(meter)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self.answer(200, TEXT, generate_latest(registry))
                elif path == "/healthz":
                    phase = meter.standing().phase
                    self.answer(200 if phase is Phase.COMPLETE else 503, "text/plain", f"{phase}\n".encode())
                elif path == "/progress" and not self.may_see():
                    self.answer(401, "text/plain", f"send the internal key as {HEADER_INTERNAL_KEY}\n".encode())
                elif path == "/progress":
                    self.answer(200, "application/json", msgspec.json.encode(meter.standing()))
                else:
                    self.answer(404, "text/plain", b"GET /progress, /healthz or /metrics\n")

            def may_see(self) -> bool:
                given = self.headers.get(HEADER_INTERNAL_KEY) or ""
                return not internal_key or hmac.compare_digest(given.encode(), internal_key.encode())

            def answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Fetched(Collector):
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def collect(self) -> list[CounterMetricFamily]:
        text = "Bytes that came over the network."
        return [CounterMetricFamily("quire_agent_fetched_bytes", text, value=self._meter.fetched_bytes)]


def _registry(meter: Meter) -> CollectorRegistry:
    registry = CollectorRegistry()

    def gauge(name: str, text: str) -> Gauge:
        return Gauge(f"quire_agent_{name}", text, registry=registry)

    gauge("done_bytes", "Bytes of the model that are here.").set_function(lambda: meter.standing().bytes_done)
    gauge("model_bytes", "Bytes of the whole model; 0 until known.").set_function(lambda: meter.standing().bytes_total)
    gauge("complete", "1 once the weights are complete.").set_function(
        lambda: float(meter.standing().phase is Phase.COMPLETE)
    )
    gauge("elapsed_seconds", "From the start to the end of the fetch.").set_function(
        lambda: meter.standing().elapsed_seconds
    )
    registry.register(_Fetched(meter))
    return registry
