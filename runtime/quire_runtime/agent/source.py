"""Where a model comes from, as the user writes it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from quire_runtime.agent.errors import InvalidSource, UnsupportedScheme, WeightsNotFound

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-_]{1,62}")
IMAGE = re.compile(
    r"(?P<registry>[A-Za-z0-9.\-]+(:\d+)?|\[[0-9a-fA-F:]+\](:\d+)?)"
    r"/(?P<repository>[a-z0-9]+([._/\-]+[a-z0-9]+)*)"
    r"(:(?P<tag>\w[\w.\-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
KNOWN = "file://, hf://org/name, s3://bucket/prefix or oci://registry/repository:tag"


@dataclass(frozen=True, slots=True)
class LocalSource:
    path: Path


@dataclass(frozen=True, slots=True)
class HubSource:
    repository: str
    revision: str | None

    def __str__(self) -> str:
        return f"hf://{self.repository}"


@dataclass(frozen=True, slots=True)
class BucketSource:
    bucket: str
    prefix: str
    """Without slashes at its ends; empty for the whole bucket."""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class RegistrySource:
    registry: str
    """Host, with the port where one is given."""
    repository: str
    reference: str
    """A tag, or sha256:… ."""

    def __str__(self) -> str:
        separator = "@" if self.reference.startswith("sha256:") else ":"
        return f"oci://{self.registry}/{self.repository}{separator}{self.reference}"


@dataclass(frozen=True, slots=True)
class ClaimSource:
    claim: str
    path: str

    def __str__(self) -> str:
        return f"pvc://{self.claim}/{self.path}"


Source = LocalSource | HubSource | BucketSource | RegistrySource | ClaimSource


def parse_source(source: str, revision: str | None = None) -> Source:
    """Read an address with a scheme, a plain path, or `org/name` where no such directory exists.

    Raises:
        InvalidSource: none of these, two different revisions, or a revision where there are none.
        UnsupportedScheme: another scheme.
    """
    scheme, found, rest = source.partition("://")
    if not found:
        path = Path(source).expanduser()
        if REPOSITORY.fullmatch(source) and not path.exists():
            return HubSource(source, revision)
        if not source:
            raise InvalidSource("No model was named. Give a directory or hf://org/name.")
        return LocalSource(path)
    if scheme == "hf":
        return _hub(source, rest, revision)
    if scheme == "file":
        return _local(source)
    if revision is not None and scheme in ("s3", "oci", "pvc"):
        raise InvalidSource(f"{source} has no revisions. Remove the revision {revision!r}; only hf:// has them.")
    if scheme == "s3":
        return _bucket(source, rest)
    if scheme == "oci":
        return _registry(source, rest)
    if scheme == "pvc":
        claim, _, inside = rest.partition("/")
        if not claim or ".." in inside.split("/"):
            raise InvalidSource(f"{source} is not written as pvc://claim/path.")
        return ClaimSource(claim, inside.strip("/"))
    raise UnsupportedScheme(f"{source}: {scheme}:// is not known. Use a directory, {KNOWN}.")


def check_source(source: str, revision: str | None = None) -> Source:
    """What `source` names, as far as this machine can tell without asking anybody.

    Raises:
        InvalidSource, UnsupportedScheme: it cannot be understood.
        WeightsNotFound: it is a path where no directory is.
    """
    parsed = parse_source(source, revision)
    if isinstance(parsed, LocalSource) and not os.path.isdir(parsed.path):
        state = "is not a directory" if os.path.exists(parsed.path) else "does not exist"
        raise WeightsNotFound(f"The model directory {parsed.path} {state}. For a model of the Hub write hf://org/name.")
    return parsed


def _local(source: str) -> LocalSource:
    parts = urlsplit(source)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise InvalidSource(f"{source} names the host {parts.netloc!r}; write file:///directory with three slashes.")
    return LocalSource(Path(unquote(parts.path)))


def _hub(source: str, rest: str, revision: str | None) -> HubSource:
    repository, _, written = rest.strip("/").partition("@")
    if not REPOSITORY.fullmatch(repository) or rest.endswith("@"):
        raise InvalidSource(f"{source} is not written as hf://org/name or hf://org/name@revision.")
    if written and revision and written != revision:
        raise InvalidSource(f"{source} asks for revision {written}, but the revision given beside it is {revision}.")
    return HubSource(repository, written or revision)


def _bucket(source: str, rest: str) -> BucketSource:
    bucket, _, prefix = rest.partition("/")
    if not BUCKET.fullmatch(bucket):
        raise InvalidSource(f"{source} is not written as s3://bucket/prefix.")
    return BucketSource(bucket, prefix.strip("/"))


def _registry(source: str, rest: str) -> RegistrySource:
    matched = IMAGE.fullmatch(rest)
    if not matched:
        raise InvalidSource(f"{source} is not written as oci://registry/repository:tag, in lower case.")
    reference = matched["digest"] or matched["tag"] or "latest"
    return RegistrySource(matched["registry"], matched["repository"], reference)
