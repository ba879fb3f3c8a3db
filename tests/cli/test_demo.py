"""What `quire demo` says when it cannot begin."""

import socket
from pathlib import Path

import pytest

from quire.demo import DemoFailed, run_demo


def test_a_port_that_is_taken_is_one_sentence(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DemoFailed, match=rf"^port {port} of 127\.0\.0\.1 cannot be used: .*or use --port$"):
            run_demo("manifests/samples/quire-tiny.yaml", port=port, stay=False)
