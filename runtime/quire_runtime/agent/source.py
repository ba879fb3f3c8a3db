"""Where a model comes from, as the user writes it."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from quire_runtime.agent.errors import InvalidSource, UnsupportedScheme

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
ELSEWHERE = ("s3", "oci", "pvc")


@dataclass(frozen=True, slots=True)
class LocalSource:
    path: Path


@dataclass(frozen=True, slots=True)
class HubSource:
    repository: str
    revision: str | None


def parse_source(source: str, revision: str | None = None) -> LocalSource | HubSource:
    """Read `file:///dir`, a plain path, `hf://org/name[@revision]`, or `org/name` where no such directory exists.

    Raises:
        InvalidSource: none of these, or two different revisions.
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
    if scheme == "file":
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise InvalidSource(
                f"{source} names the host {parts.netloc!r}; write file:///directory with three slashes."
            )
        return LocalSource(Path(unquote(parts.path)))
    if scheme == "hf":
        return _hub(source, rest, revision)
    if scheme in ELSEWHERE:
        raise UnsupportedScheme(
            f"{source}: {scheme}:// sources are not supported by this release outside a cluster. "
            "Copy the model to a directory and name that, or use hf://org/name."
        )
    raise UnsupportedScheme(f"{source}: {scheme}:// is not known. Use a directory, file:// or hf://org/name.")


def _hub(source: str, rest: str, revision: str | None) -> HubSource:
    repository, _, written = rest.strip("/").partition("@")
    if not REPOSITORY.fullmatch(repository) or rest.endswith("@"):
        raise InvalidSource(f"{source} is not written as hf://org/name or hf://org/name@revision.")
    if written and revision and written != revision:
        raise InvalidSource(f"{source} asks for revision {written}, but the revision given beside it is {revision}.")
    return HubSource(repository, written or revision)
