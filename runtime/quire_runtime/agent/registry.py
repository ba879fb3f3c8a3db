"""oci://: a model as an artifact of an OCI registry, one blob for each file."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import httpx

from quire_api.errors import UserError
from quire_runtime.agent.errors import (
    InvalidSource,
    SourceUnreachable,
    WeightsCorrupt,
    WeightsNotFound,
    WeightsUnauthorized,
)
from quire_runtime.agent.registry_auth import (
    DOCKER_HUB,
    DOCKER_HUB_HOST,
    RegistryAuth,
    is_loopback,
    read_credentials,
)
from quire_runtime.agent.source import RegistrySource
from quire_runtime.agent.store import CHUNK_BYTES, Digest, RemoteFile

NAME_ANNOTATIONS = ("org.opencontainers.image.title", "org.cncf.model.filepath")
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
TIMEOUT = httpx.Timeout(30.0, connect=10.0)


class RegistryStore:
    """Manifest and blobs by the distribution API; every one is verified against its digest.

    A layer's file name is its title annotation, as `oras push` writes it, or the file path of the CNCF model format.
    """

    def __init__(self, source: RegistrySource) -> None:
        self._source = source
        host = DOCKER_HUB_HOST if source.registry == DOCKER_HUB else source.registry
        is_plain = is_loopback(httpx.URL(f"//{host}").host)
        auth = RegistryAuth(host, source.repository, read_credentials(source.registry, source.repository))
        self._base = f"{'http' if is_plain else 'https'}://{host}/v2/{source.repository}"
        self._http = httpx.Client(
            auth=auth, timeout=TIMEOUT, follow_redirects=True, trust_env=not is_plain, limits=httpx.Limits()
        )

    def files(self) -> list[RemoteFile]:
        with self._told():
            manifest = self._manifest(self._source.reference)
            if "manifests" in manifest:
                manifest = self._manifest(_only_digest(manifest["manifests"], self._source))
            return [_file(layer, self._source) for layer in manifest.get("layers", ())]

    def digest(self, file: RemoteFile) -> Digest | None:
        algorithm, _, value = file.identity.partition(":")
        return Digest(algorithm, value)

    @contextlib.contextmanager
    def read(self, file: RemoteFile, offset: int) -> Iterator[Iterator[bytes]]:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._told(), self._http.stream("GET", f"{self._base}/blobs/{file.identity}", headers=headers) as answer:
            self._check(answer, file.name)
            chunks = answer.iter_raw(CHUNK_BYTES)
            yield _after(chunks, offset) if offset and answer.status_code == 200 else chunks

    def close(self) -> None:
        self._http.close()

    def _manifest(self, reference: str) -> dict[str, Any]:
        answer = self._http.get(f"{self._base}/manifests/{reference}", headers={"Accept": ", ".join(MANIFEST_TYPES)})
        self._check(answer, f"the manifest {reference}")
        body = answer.content
        promised = reference if reference.startswith("sha256:") else answer.headers.get("Docker-Content-Digest", "")
        if promised.startswith("sha256:") and promised != f"sha256:{hashlib.sha256(body).hexdigest()}":
            raise WeightsCorrupt(f"The manifest of {self._source} does not have the digest {promised}. Push it anew.")
        manifest = json.loads(body)
        if not isinstance(manifest, dict) or not {"layers", "manifests"} & set(manifest):
            raise ValueError("its manifest is of an unknown kind")
        return manifest

    def _check(self, answer: httpx.Response, what: str) -> None:
        if not answer.is_success:
            raise _refused(answer, self._source, what)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (httpx.TransportError, httpx.TooManyRedirects) as error:
            raise _unreachable(self._source, str(error) or type(error).__name__) from error
        except (ValueError, KeyError, TypeError, AttributeError, httpx.InvalidURL) as error:
            raise InvalidSource(
                f"{self._source} is not a model artifact: {error}. Push it with `oras push`."
            ) from error


def _file(layer: dict[str, Any], source: RegistrySource) -> RemoteFile:
    annotations = layer.get("annotations") or {}
    name = next((annotations[key] for key in NAME_ANNOTATIONS if key in annotations), None)
    if name is None or "tar" in str(layer.get("mediaType", "")).replace("+", ".").split("."):
        raise InvalidSource(
            f"{source} holds an archive ({layer.get('mediaType')}), not single files. "
            "Push the model's files as they are: oras push REGISTRY/REPOSITORY:TAG config.json model.safetensors …"
        )
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.parts[:1] == (".quire",):
        raise InvalidSource(f"{source} holds a file named {name!r}, which does not stay in its folder.")
    digest = str(layer["digest"])
    if not digest.startswith(("sha256:", "sha512:")):
        raise InvalidSource(f"{source}: the digest {digest} of {name} is of an unknown kind.")
    return RemoteFile(str(path), int(layer["size"]), digest)


def _only_digest(manifests: list[dict[str, Any]], source: RegistrySource) -> str:
    if len(manifests) != 1:
        raise InvalidSource(f"{source} is an index of {len(manifests)} manifests. Name one of them by its digest.")
    return str(manifests[0]["digest"])


def _after(chunks: Iterator[bytes], offset: int) -> Iterator[bytes]:
    """What follows the first `offset` bytes, of a server that knows no ranges."""
    for chunk in chunks:
        if offset < len(chunk):
            yield chunk[offset:]
        offset = max(offset - len(chunk), 0)


def _refused(answer: httpx.Response, source: RegistrySource, what: str) -> UserError:
    status = answer.status_code
    if status in (401, 403):
        return WeightsUnauthorized(
            f"The registry refuses access to {source} ({status}). Check the name, and give credentials that may pull "
            "it: a Secret of type kubernetes.io/dockerconfigjson, or `docker login` without a cluster."
        )
    if status == 404:
        return WeightsNotFound(f"{source}: {source.registry} has no {what}. Check the repository and the tag.")
    return _unreachable(source, f"the registry answered {status}")


def _unreachable(source: RegistrySource, detail: str) -> SourceUnreachable:
    return SourceUnreachable(
        f"{source} could not be fetched ({detail}). Check the registry's name and the network, then start again."
    )
