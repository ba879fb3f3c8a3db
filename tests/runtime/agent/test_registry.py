"""oci:// against Debian's docker-registry: open, with a password, and with a token service."""

import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from quire_runtime.agent.errors import (
    InvalidSource,
    SourceUnreachable,
    WeightsCorrupt,
    WeightsNotFound,
    WeightsUnauthorized,
)
from quire_runtime.agent.fetch import fetch_into
from quire_runtime.agent.registry_auth import is_loopback
from quire_runtime.agent.retry import Retry
from quire_runtime.agent.source import parse_source

PROGRAM = shutil.which("docker-registry")
if PROGRAM is None and os.environ.get("CI") != "true":
    pytest.skip("docker-registry is not installed; on Debian: apt-get install docker-registry", allow_module_level=True)

DEADLINE_S = 60
USER, PASSWORD = "reader", "pass word"
HTPASSWD = "reader:$2b$05$5v9PsbtVyxJ5oK040v0OpeKZ8VweJwKmgLy.Is3iNXRfzF.tFnXE6"
SOON = Retry(attempts=4, first_s=0.01)


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Registry:
    """A registry with its files in `folder`, spoken to over a Link."""

    def __init__(self, folder: Path, make_link: Callable[[int], Any], auth: dict[str, Any] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        port = free_port()
        settings = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": f"127.0.0.1:{port}"},
            **({"auth": auth} if auth else {}),
        }
        (folder / "config.yml").write_text(yaml.safe_dump(settings))
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([str(PROGRAM), "serve", str(folder / "config.yml")], stdout=log, stderr=log)
        self.url = f"http://127.0.0.1:{port}"
        self.headers: dict[str, str] = {}
        wait_until_answering(self.url)
        self.link = make_link(port)

    def close(self) -> None:
        self.link.close()
        self.process.terminate()
        self.process.wait(DEADLINE_S)

    @property
    def source(self) -> str:
        return f"oci://{self.link.address}/models/tiny:v1"

    def push_blob(self, content: bytes) -> str:
        started = httpx.post(
            f"{self.url}/v2/models/tiny/blobs/uploads/", headers=self.headers, timeout=DEADLINE_S
        ).raise_for_status()
        place = httpx.URL(started.headers["Location"]).copy_merge_params({"digest": sha256(content)})
        httpx.put(place, content=content, headers=self.headers, timeout=DEADLINE_S).raise_for_status()
        return sha256(content)

    def push(self, files: dict[str, bytes], tag: str = "v1", **layer: str) -> str:
        layers = [
            {
                "mediaType": "application/octet-stream",
                "digest": self.push_blob(content),
                "size": len(content),
                "annotations": {"org.opencontainers.image.title": name},
                **layer,
            }
            for name, content in files.items()
        ]
        kind = "application/vnd.oci.image.manifest.v1+json"
        config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": self.push_blob(b"{}"), "size": 2}
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}
        return self.push_manifest(manifest, tag)

    def push_manifest(self, manifest: dict[str, Any], tag: str) -> str:
        body = json.dumps(manifest).encode()
        headers = {**self.headers, "Content-Type": manifest["mediaType"]}
        httpx.put(
            f"{self.url}/v2/models/tiny/manifests/{tag}", content=body, headers=headers, timeout=DEADLINE_S
        ).raise_for_status()
        return sha256(body)

    def stored(self, content: bytes) -> Path:
        """The file in which the registry keeps a blob."""
        digest = hashlib.sha256(content).hexdigest()
        return self.folder / f"data/docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"


def wait_until_answering(url: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            httpx.get(f"{url}/v2/", timeout=DEADLINE_S)
            return
        except httpx.TransportError:
            assert time.monotonic() < end
            time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path, make_link: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    started: list[Registry] = []
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))

    def start(auth: dict[str, Any] | None = None) -> Registry:
        started.append(Registry(tmp_path / f"registry-{len(started)}", make_link, auth))
        return started[-1]

    yield start
    for registry in started:
        registry.close()


@pytest.fixture
def registry(start: Callable[..., Registry], model_files: dict[str, bytes]) -> Registry:
    """An open one that holds the small model."""
    registry = start()
    registry.push(model_files)
    return registry


def log_in(tmp_path: Path, registry: Registry, username: str = USER, password: str = PASSWORD, **more: str) -> None:
    entry = {"auth": base64.b64encode(f"{username}:{password}".encode()).decode(), **more}
    (tmp_path / "docker").mkdir(exist_ok=True)
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {f"http://{registry.link.address}": entry}}))


def held(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def fetch(registry: Registry, directory: Path, source: str | None = None, **options: Any) -> dict[str, bytes]:
    return held(fetch_into(parse_source(source or registry.source), directory, **options))


def test_an_artifact_comes_file_by_file(registry: Registry, model_files: dict[str, bytes], tmp_path: Path):
    assert fetch(registry, tmp_path / "m") == model_files
    received = registry.link.received
    assert fetch(registry, tmp_path / "m") == model_files
    assert registry.link.received == received


def test_a_digest_names_an_artifact_too(registry: Registry, model_files: dict[str, bytes], tmp_path: Path):
    digest = registry.push(model_files, "v2")
    source = f"oci://{registry.link.address}/models/tiny@{digest}"
    assert fetch(registry, tmp_path / "m", source) == model_files


def test_an_index_of_one_manifest_is_followed(registry: Registry, model_files: dict[str, bytes], tmp_path: Path):
    manifest = registry.push(model_files, "v2")
    kind = "application/vnd.oci.image.index.v1+json"
    size = len(httpx.get(f"{registry.url}/v2/models/tiny/manifests/{manifest}", timeout=DEADLINE_S).content)
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": size}
    registry.push_manifest({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]}, "v1")
    assert fetch(registry, tmp_path / "m") == model_files


def test_a_cut_connection_is_resumed_where_it_was_cut(
    registry: Registry, model_files: dict[str, bytes], tmp_path: Path
):
    registry.link.cut_after(3 << 20)
    assert fetch(registry, tmp_path / "m", retry=SOON) == model_files
    (start,) = registry.link.ranges()
    assert 0 < start <= 3 << 20


def test_a_blob_that_is_not_what_its_digest_says_is_refused(
    registry: Registry, model_files: dict[str, bytes], tmp_path: Path
):
    shard = model_files["model-00002-of-00002.safetensors"]
    registry.stored(shard).write_bytes(shard[:-1] + b"\0")
    with pytest.raises(WeightsCorrupt, match="model-00002-of-00002"):
        fetch(registry, tmp_path / "m", retry=SOON)
    assert "model-00002-of-00002.safetensors" not in held(tmp_path / "m")


@pytest.mark.parametrize(
    ("path", "hint"),
    [("models/tiny:v9", "no the manifest v9"), ("models/absent:v1", "Check the repository and the tag")],
)
def test_what_is_not_there(registry: Registry, tmp_path: Path, path: str, hint: str):
    with pytest.raises(WeightsNotFound, match=hint):
        fetch(registry, tmp_path / "m", f"oci://{registry.link.address}/{path}", retry=SOON)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", ".quire/record.json"])
def test_a_file_name_does_not_lead_out_of_the_folder(registry: Registry, tmp_path: Path, name: str):
    registry.push({"config.json": b"{}", name: b"x"})
    with pytest.raises(InvalidSource, match="does not stay in its folder"):
        fetch(registry, tmp_path / "m")


def test_an_archive_is_refused_with_the_command_that_would_do(registry: Registry, tmp_path: Path):
    registry.push({"model": b"x"}, mediaType="application/vnd.oci.image.layer.v1.tar+gzip")
    with pytest.raises(InvalidSource, match="oras push"):
        fetch(registry, tmp_path / "m")


def test_a_registry_that_does_not_answer(registry: Registry, tmp_path: Path):
    registry.link.close()
    with pytest.raises(SourceUnreachable, match="Check the registry's name"):
        fetch(registry, tmp_path / "m", retry=SOON)


def test_a_registry_with_a_password(start: Callable[..., Registry], model_files: dict[str, bytes], tmp_path: Path):
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    registry = start({"htpasswd": {"realm": "models", "path": str(tmp_path / "htpasswd")}})
    registry.headers = {"Authorization": "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
    registry.push(model_files)
    with pytest.raises(WeightsUnauthorized, match="dockerconfigjson"):
        fetch(registry, tmp_path / "m", retry=SOON)
    log_in(tmp_path, registry, password="wrong")
    with pytest.raises(WeightsUnauthorized, match="401"):
        fetch(registry, tmp_path / "m", retry=SOON)
    log_in(tmp_path, registry)
    assert fetch(registry, tmp_path / "m") == model_files


class TokenService:
    """Signs tokens for whoever gives the password, or the identity token `refresh`; each is good for one scope."""

    def __init__(self, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tokens")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._certificate = certificate.public_bytes(serialization.Encoding.DER)
        self.bundle = folder / "bundle.pem"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.issued = 0
        self.life_s = 300
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                given = self.headers.get("Authorization", "")
                expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                self.answer(given == expected, parse_qs(urlsplit(self.path).query))

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.answer(form.get("refresh_token") == ["refresh"], form)

            def answer(self, is_known: bool, asked: dict[str, list[str]]) -> None:
                body = json.dumps({"token": service.token(asked["scope"][0])} if is_known else {}).encode()
                self.send_response(200 if is_known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def token(self, scope: str) -> str:
        self.issued += 1
        kind, name, actions = scope.split(":")
        now = int(time.time())
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(self._certificate).decode()]}
        claims = {
            "iss": "tokens",
            "aud": "models",
            "sub": USER,
            "jti": str(self.issued),
            "exp": now + self.life_s,
            "nbf": now - 300,
            "iat": now - 300,
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        signed = ".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenService]:
    service = TokenService(tmp_path)
    yield service
    service.close()


@pytest.fixture
def guarded(start: Callable[..., Registry], tokens: TokenService, model_files: dict[str, bytes]) -> Registry:
    """A registry that takes the tokens of `tokens` and holds the small model."""
    settings = {"realm": tokens.url, "service": "models", "issuer": "tokens", "rootcertbundle": str(tokens.bundle)}
    registry = start({"token": settings})
    registry.headers = {"Authorization": f"Bearer {tokens.token('repository:models/tiny:pull,push')}"}
    registry.push(model_files)
    return registry


def test_a_registry_with_a_token_service(
    guarded: Registry, tokens: TokenService, model_files: dict[str, bytes], tmp_path: Path
):
    with pytest.raises(WeightsUnauthorized):
        fetch(guarded, tmp_path / "m", retry=SOON)
    log_in(tmp_path, guarded, password="wrong")
    with pytest.raises(WeightsUnauthorized):
        fetch(guarded, tmp_path / "m", retry=SOON)
    log_in(tmp_path, guarded)
    before = tokens.issued
    assert fetch(guarded, tmp_path / "m") == model_files
    assert tokens.issued == before + 1


def test_an_identity_token_buys_tokens_too(guarded: Registry, model_files: dict[str, bytes], tmp_path: Path):
    log_in(tmp_path, guarded, "", "", identitytoken="refresh")
    assert fetch(guarded, tmp_path / "m") == model_files


def test_a_token_that_expired_is_renewed(
    guarded: Registry, tokens: TokenService, model_files: dict[str, bytes], tmp_path: Path
):
    log_in(tmp_path, guarded)
    tokens.life_s = -120
    with pytest.raises(WeightsUnauthorized):
        fetch(guarded, tmp_path / "m", retry=SOON)
    tokens.life_s = 300
    assert fetch(guarded, tmp_path / "m") == model_files


def test_a_configuration_that_cannot_be_read(registry: Registry, tmp_path: Path):
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text('{"auths": ')
    with pytest.raises(WeightsUnauthorized, match="kubectl create secret docker-registry"):
        fetch(registry, tmp_path / "m")


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("localhost", True), ("127.0.0.1", True), ("[::1]", True), ("registry.internal", False), ("10.0.0.1", False)],
)
def test_plain_http_is_for_this_machine_only(host: str, is_local: bool):
    assert is_loopback(host) is is_local
