"""An engine and a gateway of a few lines, and `quire up` started with them: run as `python stand_ins.py ROLE ...`.

The engine does what the file behaviour.json in its model's folder says: {"start_s": 0.0, "fail": "sentence"}.
The gateway believes every replica of the routing table and reads requests in flight from in-flight.json beside it.
"""

import argparse
import json
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def serve(host: str, port: int, pages) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = pages(self.path, self.headers)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_) -> None:
            pass

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer((host, port), Handler).serve_forever()


def engine(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--max-model-len", type=int, default=512)
    options, _ = parser.parse_known_args(argv)
    print("argv", json.dumps(argv), flush=True)
    behaviour = json.loads((options.model / "behaviour.json").read_text())
    if options.max_model_len == 13:
        sys.exit("quire: 13 is an unlucky length")
    if behaviour.get("fail"):
        sys.exit(behaviour["fail"])
    ready_at = time.monotonic() + behaviour.get("start_s", 0.0)
    about = {
        "served_names": options.served_model_name,
        "model_revision": "rev-1",
        "block_size": 16,
        "block_format": 1,
        "max_model_len": options.max_model_len,
        "tokenizer_digest": "",
        "kv_capacity_tokens": 1024,
        "max_num_seqs": 8,
        "engine_epoch": "1",
    }

    def pages(path, headers):
        if path == "/internal/v1/model":
            return (200, about) if headers["x-quire-internal-key"] else (401, {})
        return (200 if time.monotonic() >= ready_at else 503), {}

    serve(options.host, options.port, pages)


def gateway(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--routing-table", type=Path)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    options, _ = parser.parse_known_args(argv)

    def pages(path, headers):
        table = json.loads(options.routing_table.read_text())
        counts_file = options.routing_table.with_name("in-flight.json")
        counts = json.loads(counts_file.read_text()) if counts_file.exists() else {}
        replicas = [
            {
                "deployment": deployment["name"],
                "namespace": deployment["namespace"],
                "replica": replica["id"],
                "is_routable": True,
                "in_flight": counts.get(replica["id"], 0),
                "reason": "Draining" if replica["is_draining"] else "",
            }
            for deployment in table["deployments"]
            for replica in deployment["replicas"]
        ]
        return 200, {"replicas": replicas, "version": 1}

    serve(options.host, options.port, pages)


def up(argv: list[str]) -> None:
    from quire.up import run_up
    from quire.up.commands import Programs
    from quire_api.errors import UserError

    here = (sys.executable, __file__)
    try:
        run_up(
            argv[0],
            port=int(argv[1]),
            state_dir=Path(argv[2]),
            programs=Programs(serve=(*here, "engine"), gateway=(*here, "gateway")),
        )
    except UserError as error:
        print(f"quire: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    {"engine": engine, "gateway": gateway, "up": up}[sys.argv[1]](sys.argv[2:])
