"""A server on 127.0.0.1 that speaks as much of the Hub's API as a download needs, and can misbehave."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest

COMMIT = "c0ffee" + "0" * 34
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 4096,
    "README.md": b"# not needed",
    "pytorch_model.bin": b"never fetched",
    "original/consolidated.00.pth": b"never fetched",
}


class FakeHub:
    """One repository, org/tiny, at `main` and `v1`; large files redirect to another host, as the Hub's do."""

    def __init__(self) -> None:
        self.files = dict(MODEL)
        self.revisions = {"main": COMMIT, "v1": COMMIT, COMMIT: COMMIT}
        self.token: str | None = None
        self.is_gated = False
        self.failing_status: int | None = None
        self.break_after: int | None = None
        """The next answer with a body longer than this ends there, without a word."""
        self.claimed_size: int | None = None
        """Size that the listing gives for the weights, whatever they are."""
        self.tokens_seen_by_cdn = False
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def ranges(self, method: str = "GET") -> list[str]:
        return [headers["range"] for verb, _, headers in self.requests if verb == method and "range" in headers]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.command, path, headers))
        if self.failing_status:
            return self.send(request, self.failing_status, b"{}")
        if path.startswith("/cdn/"):
            self.tokens_seen_by_cdn |= "authorization" in headers
            return self.send_file(request, path.removeprefix("/cdn/"), headers)
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            return self.send(request, 401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        if matched := re.fullmatch(r"/api/models/org/tiny(?:/(revision|tree)/(.+))?", path):
            return self.send_listing(request, matched[1], matched[2] or "main")
        if matched := re.fullmatch(r"/org/tiny/resolve/([^/]+)/(.+)", path):
            return self.send_resolved(request, matched[1], matched[2], headers)
        self.send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def send_listing(self, request: BaseHTTPRequestHandler, kind: str | None, revision: str) -> None:
        if revision not in self.revisions:
            return self.send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = [self.described(name) for name in self.files]
        if kind == "tree":
            return self.send(request, 200, json.dumps(files).encode())
        siblings = [{**file, "rfilename": file["path"], "blobId": file["oid"]} for file in files]
        body = {"id": "org/tiny", "sha": self.revisions[revision], "siblings": siblings, "tags": [], "downloads": 0}
        self.send(request, 200, json.dumps(body).encode())

    def described(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        size = self.claimed_size if self.claimed_size and name.endswith(".safetensors") else len(content)
        entry = {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(content).hexdigest()}
        if name.endswith(".safetensors"):
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "sha256": sha, "size": size, "pointerSize": 130}
        return entry

    def send_resolved(self, request: BaseHTTPRequestHandler, revision: str, name: str, headers: dict[str, str]) -> None:
        if revision not in self.revisions:
            return self.send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        if self.is_gated:
            return self.send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        if name not in self.files:
            return self.send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        commit = {"X-Repo-Commit": self.revisions[revision]}
        if not name.endswith(".safetensors"):
            return self.send_file(request, name, headers, commit)
        content = self.files[name]
        linked = {
            "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"http://localhost:{self.server.server_port}/cdn/{name}",
        }
        self.send(request, 302, b"", {**commit, **linked})

    def send_file(
        self, request: BaseHTTPRequestHandler, name: str, headers: dict[str, str], extra: dict[str, str] | None = None
    ) -> None:
        content = self.files[name]
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes", **(extra or {})}
        if matched := re.fullmatch(r"bytes=(\d+)-", headers.get("range", "")):
            start = int(matched[1])
            etag["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.send(request, 206, content[start:], etag)
        self.send(request, 200, content, etag)

    def send(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        request.send_response(status)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.break_after is not None and len(body) > self.break_after:
            body, self.break_after = body[: self.break_after], None
            request.close_connection = True
        request.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A fresh hub that HF_ENDPOINT points to; no token, no cache and no Xet of this machine is used."""
    hub = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in {
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
        "DOWNLOAD_CHUNK_SIZE": 1 << 16,
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "HF_HUB_CACHE": str(tmp_path / "default-cache"),
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield hub
    hub.close()
