"""What commands say of the answers of a server that they took for a gateway."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from quire.chat import ServerRefused
from quire.gateway_pages import GatewayPages
from quire_api import wire

Answers = Callable[[int, object], GatewayPages]


@pytest.fixture
def answers() -> Iterator[Answers]:
    """answers(status, body): the pages of a server that answers everything so."""
    servers = []

    def start(status: int, body: object) -> GatewayPages:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return GatewayPages(f"http://127.0.0.1:{server.server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_engine_is_said_to_be_no_gateway(answers):
    pages = answers(404, {"error": {"message": "There is nothing at this path.", "code": "unknown_url"}})
    with pytest.raises(ServerRefused, match="is no Quire gateway"):
        pages.ask(wire.RouteExplanation, "/debug/route", {})


def test_a_gateway_without_the_model_is_quoted(answers):
    pages = answers(404, {"error": {"message": "Name a `model` that is served here: m.", "code": "model_not_found"}})
    with pytest.raises(ServerRefused, match="served here: m"):
        pages.ask(wire.RouteExplanation, "/debug/route", {})


@pytest.mark.parametrize("body", [[], {"error": "no"}, {"error": {"message": None}}, 3])
def test_an_error_of_another_form_is_told_by_its_status(answers, body):
    with pytest.raises(ServerRefused, match="status 418"):
        answers(418, body).ask(wire.RouteExplanation, "/debug/route", {})
