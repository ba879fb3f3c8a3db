"""A model's files on this machine, from wherever its source says."""

import fnmatch
import glob
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoSibling
from tqdm.auto import tqdm

from quire_runtime.agent.errors import DiskFull, WeightsNotFound
from quire_runtime.agent.hub_errors import as_user_error
from quire_runtime.agent.source import HubSource, parse_source

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes to download in all), from any thread, one call at a time."""

DESCRIPTION_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
)
SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
SPARE_BYTES = 16 << 20


def fetch_model(
    source: str,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    *,
    allow_pickle: bool = False,
) -> Path:
    """The directory that holds the model named by `source`: a path, file://, or hf://org/name[@revision].

    A Hub model is downloaded (config, tokenizer and safetensors only) into `cache_dir`, by default the Hugging Face
    cache; what lies there already is not downloaded again, and a connection that breaks is resumed. HF_ENDPOINT names
    another Hub; without `token`, HF_TOKEN or the stored login is used. If the Hub does not answer, a complete earlier
    download serves.

    Raises:
        InvalidSource, UnsupportedScheme: the source cannot be understood.
        WeightsNotFound, WeightsUnauthorized, SourceUnreachable: the store says no, or nothing.
        DiskFull, CacheNotWritable: the files cannot be kept.
    """
    parsed = parse_source(source, revision)
    if isinstance(parsed, HubSource):
        return _from_hub(parsed, token, Path(cache_dir or constants.HF_HUB_CACHE), progress, allow_pickle)
    if not parsed.path.is_dir():
        state = "is not a directory" if parsed.path.exists() else "does not exist"
        raise WeightsNotFound(f"The model directory {parsed.path} {state}. For a model of the Hub write hf://org/name.")
    return parsed.path


def _from_hub(
    source: HubSource, token: str | None, cache_dir: Path, progress: Progress | None, allow_pickle: bool
) -> Path:
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        try:
            info = HfApi(endpoint=endpoint, token=token).model_info(
                source.repository, revision=source.revision, files_metadata=True
            )
        except (httpx.TransportError, OfflineModeIsEnabled, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            return _complete_download(source, cache_dir, error)
        wanted = _wanted(info.siblings or [], source, allow_pickle)
        to_download = _bytes_to_download(wanted, source.repository, str(info.sha), cache_dir)
        _check_disk(to_download, cache_dir, source)
        directory = snapshot_download(
            source.repository,
            revision=source.revision,
            cache_dir=cache_dir,
            token=token,
            endpoint=endpoint,
            allow_patterns=[glob.escape(file.rfilename) for file in wanted],
            tqdm_class=_silent_bar(to_download, progress),
        )
    except Exception as error:
        told = as_user_error(error, source, cache_dir)
        if told is None:
            raise
        raise told from error
    if progress is not None:
        progress(to_download, to_download)
    return Path(directory)


def _wanted(files: list[RepoSibling], source: HubSource, allow_pickle: bool) -> list[RepoSibling]:
    def matching(patterns: tuple[str, ...]) -> list[RepoSibling]:
        return [file for file in files if any(fnmatch.fnmatchcase(file.rfilename, pattern) for pattern in patterns)]

    files = [file for file in files if "/" not in file.rfilename]
    weights = matching(SAFETENSORS) or (matching(PICKLES) if allow_pickle else [])
    if not weights:
        raise WeightsNotFound(
            f"hf://{source.repository} holds no safetensors weights. Choose a repository in Hugging Face format."
        )
    return matching(DESCRIPTION_FILES) + weights


def _bytes_to_download(files: list[RepoSibling], repository: str, commit: str, cache_dir: Path) -> int:
    return sum(
        file.size or 0
        for file in files
        if not isinstance(try_to_load_from_cache(repository, file.rfilename, cache_dir, commit), str)
    )


def _check_disk(needed: int, cache_dir: Path, source: HubSource) -> None:
    place = next(path for path in (cache_dir.absolute(), *cache_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed and needed + SPARE_BYTES > free:
        raise DiskFull(
            f"hf://{source.repository} needs {needed / 1e9:.2f} GB, but {place} has {free / 1e9:.2f} GB free. "
            "Free some space or name another download directory."
        )


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


def _silent_bar(total: int, progress: Progress | None) -> type[tqdm]:
    """A bar that draws nothing and reports the bytes of all files together.

    The Hub client keeps two bars in bytes, one of bytes received and one of bytes written; the one ahead counts.
    """
    lock = threading.Lock()
    done = 0

    class SilentBar(tqdm):
        def __init__(self, *args: object, **options: object) -> None:
            self.counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            with lock:
                self.n += n or 0
                if self.counts_bytes and progress is not None and done < min(self.n, total):
                    done = min(int(self.n), total)
                    progress(done, total)

    return SilentBar
