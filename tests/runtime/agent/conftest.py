"""Stores on 127.0.0.1: a server with as much of the Hub's API as a download needs, moto's S3, Debian's registry."""

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import boto3
import httpx
import huggingface_hub.constants
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

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
        self.claimed_sha256: str | None = None
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
            sha = self.claimed_sha256 or hashlib.sha256(content).hexdigest()
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


def safetensors(name: str, size: int) -> bytes:
    """One tensor of `size` bytes whose content depends on its place."""
    header = json.dumps({name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    content = b"".join(struct.pack("<I", index * 2654435761 % 2**32) for index in range(size // 4))
    return struct.pack("<Q", len(header)) + header + content


@pytest.fixture(scope="session")
def model_files() -> dict[str, bytes]:
    """A small model of two shards, 4 MiB and 1 MiB."""
    shards = {"model-00001-of-00002.safetensors": 4 << 20, "model-00002-of-00002.safetensors": 1 << 20}
    index = {"weight_map": {name: name for name in shards}}
    return {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b'{"version": "1.0"}',
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{name: safetensors(name, size) for name, size in shards.items()},
    }


class Link:
    """A way to a server, each connection of which can be cut or held once some bytes have come through it.

    Bytes are counted by connection: files come side by side, and only the connection of a large one gets far.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._limit: int | None = None
        self._cuts = False
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        self.received = b""
        """All that clients have sent."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut_after(self, count: int) -> None:
        """Close the first connection that would bring more than `count` bytes of answers; the others stay whole."""
        self._limit, self._cuts = count, True

    def hold_after(self, count: int) -> None:
        """Let each connection bring at most `count` bytes of answers until `release`."""
        self._open.clear()
        self._limit, self._cuts = count, False

    def release(self) -> None:
        self._limit = None
        self._open.set()

    def ranges(self) -> list[int]:
        """Where the requests that asked for a part began, those from the start left out."""
        found = re.findall(rb"(?im)^range: bytes=(\d+)-", self.received)
        return [int(start) for start in found if int(start)]

    def count(self, method: str) -> int:
        return len(re.findall(rb"(?m)^" + method.encode() + rb" /", self.received))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.release()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                client.close()
                continue
            for source, sink, is_answer in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._carry, args=(source, sink, is_answer), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        brought = 0
        try:
            while data := source.recv(1 << 16):
                brought += len(data)
                if not is_answer:
                    with self._lock:
                        self.received += data
                elif not self._lets_through(brought):
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _lets_through(self, brought: int) -> bool:
        with self._lock:
            if self._limit is None or brought <= self._limit:
                return True
            if self._cuts:
                self._limit = None
                return False
        return self._open.wait(120)


@pytest.fixture
def make_link() -> Callable[[int], Link]:
    return Link


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """Address of moto's S3 server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Bucket:
    """A fresh bucket `models`, spoken to over a Link."""

    def __init__(self, url: str) -> None:
        httpx.post(f"{url}/moto-api/reset", timeout=60).raise_for_status()
        self.url = url
        self.link = Link(int(url.rpartition(":")[2]))
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="admin",
            aws_secret_access_key="admin",
            config=Config(request_checksum_calculation="when_required", s3={"addressing_style": "path"}),
        )
        self.client.create_bucket(Bucket="models")

    def put(self, files: dict[str, bytes], prefix: str = "tiny/", **options: str) -> None:
        for name, content in files.items():
            self.client.put_object(Bucket="models", Key=prefix + name, Body=content, **options)

    def demand_credentials(self, *, after: int = 0) -> None:
        """From the `after`th request on; nobody has any."""
        httpx.post(f"{self.url}/moto-api/reset-auth", content=str(after), timeout=60).raise_for_status()


@pytest.fixture
def bucket(
    moto: str, model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Bucket]:
    """The small model under s3://models/tiny; the environment points there and to nothing of this machine."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    bucket = Bucket(moto)
    bucket.put(model_files)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{bucket.link.address}",
        "AWS_ACCESS_KEY_ID": "reader",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }.items():
        monkeypatch.setenv(name, value)
    yield bucket
    bucket.link.close()
    httpx.post(f"{moto}/moto-api/reset-auth", content="inf", timeout=60)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB, which only root can mount."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
