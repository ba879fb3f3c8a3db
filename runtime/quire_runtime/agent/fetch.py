"""A model's files on this machine, from wherever its source says.

A store's client takes half a second or more of a core to import: each is imported for its own sources alone.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from quire_runtime.agent.disk import disk_error
from quire_runtime.agent.download import Described, Download, Progress, unheard
from quire_runtime.agent.errors import UnsupportedScheme
from quire_runtime.agent.progress import logged
from quire_runtime.agent.record import Record, alone_in
from quire_runtime.agent.retry import ONCE, Retry
from quire_runtime.agent.source import (
    BucketSource,
    ClaimSource,
    HubSource,
    LocalSource,
    RegistrySource,
    Source,
    check_source,
)
from quire_runtime.agent.store import Store
from quire_runtime.agent.verify import verify_model


def fetch_model(
    source: str,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    *,
    allow_pickle: bool = False,
) -> Path:
    """The directory that holds the model named by `source`: a path, file://, hf://org/name[@revision], s3:// or oci://.

    A remote model is downloaded (config, tokenizer and safetensors only) into `cache_dir`, by default the Hugging Face
    cache or ~/.cache/quire; what lies there already is not downloaded again, and a connection that breaks is resumed.
    HF_ENDPOINT names another Hub; without `token`, HF_TOKEN or the stored login is used. If the Hub does not answer, a
    complete earlier download serves. Without `progress` the log is told.

    Raises:
        InvalidSource, UnsupportedScheme: the source cannot be understood.
        WeightsNotFound, WeightsUnauthorized, WeightsCorrupt, SourceUnreachable: the store says no, nonsense or nothing.
        DiskFull, CacheNotWritable: the files cannot be kept.
    """
    parsed = check_source(source, revision)
    progress = progress or logged(source)
    match parsed:
        case LocalSource(path):
            return path
        case HubSource():
            from huggingface_hub import constants

            from quire_runtime.agent.hub import fetch_into_cache

            return fetch_into_cache(parsed, token, Path(cache_dir or constants.HF_HUB_CACHE), progress, allow_pickle)
        case ClaimSource():
            raise UnsupportedScheme(f"{source}: volume claims are known only in a cluster. Name a directory instead.")
    destination = Path(cache_dir or default_cache()) / _folder_name(parsed)
    return fetch_into(parsed, destination, progress=progress, retry=Retry(), allow_pickle=allow_pickle)


def fetch_into(
    source: Source,
    destination: Path,
    *,
    token: str | None = None,
    progress: Progress | None = None,
    retry: Retry = ONCE,
    waiting: Callable[[], None] = lambda: None,
    described: Described = unheard,
    allow_pickle: bool = False,
) -> Path:
    """The directory with the model's own files: `destination`, or the one that a file:// source names.

    A destination that was completed from the same source before is taken as it is, without asking the store. Only one
    process fetches into a destination; `waiting` is called when this one has to wait for another, `described` once the
    model's config.json is there. What a volume claim holds is verified at `destination`, where it is mounted.

    Raises:
        UserError: of the agent's kinds; what was fetched so far stays for the next time.
    """
    if isinstance(source, LocalSource | ClaimSource):
        place = source.path if isinstance(source, LocalSource) else destination
        name = f"file://{place}" if isinstance(source, LocalSource) else source
        described(place, verify_model(place, name, allow_pickle=allow_pickle))
        return place
    key = f"{source}@{source.revision or ''}" if isinstance(source, HubSource) else str(source)
    try:
        with alone_in(destination, retry.pause, waiting):
            record = Record(destination, key)
            if record.is_complete:
                if progress is not None:
                    progress(record.total_bytes, record.total_bytes)
                described(destination, record.weight_bytes)
            elif isinstance(source, HubSource):
                from quire_runtime.agent.hub import fetch_into_directory

                retry.call(lambda: fetch_into_directory(source, record, token, progress, allow_pickle, described))
            else:
                with contextlib.closing(_store(source)) as store:
                    Download(store, record, source, retry, progress, described).run(allow_pickle=allow_pickle)
    except OSError as error:
        told = disk_error(error, source, destination)
        if told is None:
            raise
        raise told from error
    return destination


def default_cache() -> Path:
    """Where models of s3:// and oci:// are kept when nobody says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire" / "models"


def _store(source: BucketSource | RegistrySource) -> Store:
    if isinstance(source, BucketSource):
        from quire_runtime.agent.bucket import BucketStore

        return BucketStore(source)
    from quire_runtime.agent.registry import RegistryStore

    return RegistryStore(source)


def _folder_name(source: BucketSource | RegistrySource) -> str:
    """Readable, and different for every source."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", str(source).partition("://")[2]).strip("-")[-80:]
    return f"{readable}-{hashlib.sha256(str(source).encode()).hexdigest()[:12]}"
