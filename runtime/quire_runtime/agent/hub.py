"""hf://: a model of the Hugging Face Hub, by the Hub's own client."""

import contextlib
import glob
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoSibling
from tqdm.auto import tqdm

from quire_runtime.agent.disk import check_space
from quire_runtime.agent.download import CONFIG, Described, Progress, unheard
from quire_runtime.agent.errors import WeightsCorrupt
from quire_runtime.agent.hub_errors import as_user_error
from quire_runtime.agent.record import Record
from quire_runtime.agent.source import HubSource
from quire_runtime.agent.store import CHUNK_BYTES, Hasher, RemoteFile
from quire_runtime.agent.wanted import DESCRIPTION_FILES, SAFETENSORS, wanted_files, weight_bytes


def fetch_into_cache(
    source: HubSource, token: str | None, cache_dir: Path, progress: Progress | None, allow_pickle: bool
) -> Path:
    """The snapshot's directory in a Hugging Face cache; a complete earlier download serves while the Hub is down."""
    with _told(source, cache_dir):
        try:
            commit, wanted = _listing(source, token, allow_pickle)
        except (httpx.TransportError, OfflineModeIsEnabled, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            return _complete_download(source, cache_dir, error)
        to_download = sum(
            file.size or 0
            for file in wanted
            if not isinstance(try_to_load_from_cache(source.repository, file.rfilename, cache_dir, commit), str)
        )
        check_space(to_download, cache_dir, source)
        directory = snapshot_download(
            source.repository,
            revision=source.revision,
            cache_dir=cache_dir,
            token=token,
            endpoint=_endpoint(),
            allow_patterns=[glob.escape(file.rfilename) for file in wanted],
            tqdm_class=_silent_bar(0, to_download, progress),
        )
    if progress is not None:
        progress(to_download, to_download)
    return Path(directory)


def fetch_into_directory(
    source: HubSource,
    record: Record,
    token: str | None,
    progress: Progress | None,
    allow_pickle: bool,
    described: Described = unheard,
) -> None:
    """The model's files themselves in the record's directory, verified and marked complete."""
    directory = record.directory
    with _told(source, directory):
        commit, wanted = _listing(source, token, allow_pickle)
        total = sum(file.size or 0 for file in wanted)
        if any(file.rfilename == CONFIG for file in wanted):
            # Before gigabytes come, it should be known whether they can be used.
            hf_hub_download(
                source.repository, CONFIG, revision=commit, local_dir=directory, token=token, endpoint=_endpoint()
            )
            described(directory, weight_bytes((file.rfilename, file.size or 0) for file in wanted))
        present = sum(file.size or 0 for file in wanted if _has_size(directory / file.rfilename, file.size))
        begun = sum(part.stat().st_size for part in directory.glob(".cache/huggingface/download/**/*.incomplete"))
        check_space(max(total - present - begun, 0), directory, source)
        if progress is not None:
            progress(present, total)
        snapshot_download(
            source.repository,
            revision=commit,
            local_dir=directory,
            token=token,
            endpoint=_endpoint(),
            allow_patterns=[glob.escape(file.rfilename) for file in wanted],
            tqdm_class=_silent_bar(present, total, progress),
        )
        files = [_verified(file, directory, record, source) for file in wanted]
        record.complete(files)


def _listing(source: HubSource, token: str | None, allow_pickle: bool) -> tuple[str, list[RepoSibling]]:
    """The commit, and those of its files that make up the model."""
    info = HfApi(endpoint=_endpoint(), token=token).model_info(
        source.repository, revision=source.revision, files_metadata=True
    )
    listed = {file.rfilename: file for file in info.siblings or ()}
    return str(info.sha), [listed[name] for name in wanted_files(listed, source, allow_pickle=allow_pickle)]


def _verified(file: RepoSibling, directory: Path, record: Record, source: HubSource) -> RemoteFile:
    """Large files carry the SHA-256 of their content, small ones only a size, which the client has checked."""
    path = directory / file.rfilename
    sha256 = file.lfs.sha256 if file.lfs else None
    found = RemoteFile(file.rfilename, path.stat().st_size, sha256 or file.blob_id or "")
    if sha256 is None or record.has(found):
        return found
    hasher = Hasher("sha256")
    with path.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            hasher.update(chunk)
    if hasher.hexdigest() != sha256:
        path.unlink()
        raise WeightsCorrupt(f"{file.rfilename} of {source} does not have the SHA-256 that the Hub gives for it.")
    record.add(found)
    return found


def _has_size(path: Path, size: int | None) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextlib.contextmanager
def _told(source: HubSource, place: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        told = as_user_error(error, source, place)
        if told is None:
            raise
        raise told from error


def _complete_download(source: HubSource, cache_dir: Path, cause: Exception) -> Path:
    """An earlier download of this very revision, if all its weights are there."""
    try:
        directory = Path(
            snapshot_download(
                source.repository,
                revision=source.revision,
                cache_dir=cache_dir,
                local_files_only=True,
                allow_patterns=[*DESCRIPTION_FILES, *SAFETENSORS],
            )
        )
    except LocalEntryNotFoundError:
        raise cause from None
    if not any(directory.glob("*.safetensors")):
        raise cause
    return directory


def _silent_bar(present: int, total: int, progress: Progress | None) -> type[tqdm]:
    """A bar that draws nothing and reports the bytes of all files together, beside those `present` before.

    The Hub client keeps two bars in bytes, one of bytes received and one of bytes written; the one ahead counts.
    """
    lock = threading.Lock()
    done = present

    class SilentBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: object, **options: object) -> None:
            self.counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            with lock:
                self.n += n or 0
                reached = min(present + int(self.n), total)
                if self.counts_bytes and progress is not None and done < reached:
                    done = reached
                    progress(done, total)

    return SilentBar
