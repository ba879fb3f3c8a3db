"""A store's files into a directory: several at a time, resumed where they broke off, verified before they count."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from quire_runtime.agent.disk import check_space, disk_error
from quire_runtime.agent.errors import SourceUnreachable, WeightsCorrupt
from quire_runtime.agent.record import Record
from quire_runtime.agent.retry import Retry
from quire_runtime.agent.store import CHUNK_BYTES, Digest, Hasher, RemoteFile, Store
from quire_runtime.agent.wanted import wanted_files, weight_bytes

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from any thread, one call at a time; may raise to end the undertaking."""

Described = Callable[[Path, int], None]
"""Called once config.json stands in the directory, with the bytes of all weights; may raise to end the undertaking."""

PARALLEL_FILES = 8
CONFIG = "config.json"


def unheard(*_: object) -> None:
    """For whoever does not care."""


class Abandoned(Exception):
    """Another file failed, so this one stops."""


class Download:
    """One run over all files of a model. What a run leaves behind, the next one takes up."""

    def __init__(
        self,
        store: Store,
        record: Record,
        source: object,
        retry: Retry,
        progress: Progress | None,
        described: Described = unheard,
    ) -> None:
        self._store = store
        self._record = record
        self._source = source
        self._retry = retry
        self._progress = progress
        self._described = described
        self._lock = threading.Lock()
        self._is_abandoned = threading.Event()
        self._done = 0
        self._total = 0

    def run(self, *, allow_pickle: bool = False) -> None:
        """Fetch what is missing and mark the directory complete.

        Raises:
            UserError: of the agent's kinds; partial files stay.
        """
        listed = {file.name: file for file in self._retry.call(self._store.files)}
        files = [listed[name] for name in wanted_files(listed, self._source, allow_pickle=allow_pickle)]
        missing = [file for file in files if not self._record.has(file)]
        begun = sum(min(_size(self._record.partial_of(file)), file.size) for file in missing)
        absent = sum(file.size for file in missing) - begun
        self._total = sum(file.size for file in files)
        check_space(absent, self._record.directory, self._source)
        self._advance(self._total - absent)
        # Large files first: the last one to end is then a short one.
        missing.sort(key=lambda file: -file.size)
        try:
            # Before gigabytes come, it should be known whether they can be used.
            for file in [file for file in missing if file.name == CONFIG]:
                self._fetch(file)
                missing.remove(file)
            if CONFIG in listed:
                self._described(self._record.directory, weight_bytes((file.name, file.size) for file in files))
            with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="fetch") as pool:
                running = [pool.submit(self._fetch, file) for file in missing]
                if wait(running, return_when=FIRST_EXCEPTION).not_done:
                    self._is_abandoned.set()
                    pool.shutdown(cancel_futures=True)
            failures = [error for task in running if not task.cancelled() and (error := task.exception())]
            for failure in sorted(failures, key=lambda error: isinstance(error, Abandoned)):
                raise failure
            self._record.complete(files)
        except OSError as error:
            told = disk_error(error, self._source, self._record.directory)
            if told is None:
                raise
            raise told from error

    def _fetch(self, file: RemoteFile) -> None:
        digest = self._retry.call(lambda: self._store.digest(file))
        partial = self._record.partial_of(file)
        is_resumed = _size(partial) > 0
        found = self._fill(file, partial, digest)
        if found != digest and is_resumed:
            # The fault may lie in what an earlier run left behind.
            self._advance(-file.size)
            partial.unlink()
            found = self._fill(file, partial, digest)
        if found != digest:
            partial.unlink()
            raise WeightsCorrupt(
                f"{file.name} of {self._source} does not have the checksum that the store gives for it "
                f"({digest and digest.algorithm}). Upload it anew."
            )
        target = self._record.path_of(file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)
        self._record.add(file)

    def _fill(self, file: RemoteFile, partial: Path, digest: Digest | None) -> Digest | None:
        """Bring the partial file to its full size; the digest of what it then holds."""
        if _size(partial) > file.size:
            partial.unlink()
        hasher = Hasher(digest.algorithm) if digest else None
        with partial.open("a+b") as out:
            out.seek(0)
            while hasher and (kept := out.read(CHUNK_BYTES)):
                hasher.update(kept)
                self._check_abandoned()
            failures = 0
            while (offset := out.seek(0, os.SEEK_END)) < file.size:
                try:
                    self._append(file, offset, out.write, hasher)
                    if out.tell() < file.size:
                        raise SourceUnreachable(f"{self._source}: the connection broke off within {file.name}.")
                except SourceUnreachable as error:
                    failures = failures + 1 if out.tell() == offset else 1
                    if failures >= self._retry.attempts:
                        raise
                    self._retry.wait(failures, error)
            out.flush()
            os.fsync(out.fileno())
        return Digest(digest.algorithm, hasher.hexdigest()) if digest and hasher else None

    def _append(self, file: RemoteFile, offset: int, write: Callable[[bytes], int], hasher: Hasher | None) -> None:
        with self._store.read(file, offset) as chunks:
            for chunk in chunks:
                self._check_abandoned()
                chunk = chunk[: file.size - offset]
                if not chunk:
                    break
                write(chunk)
                if hasher:
                    hasher.update(chunk)
                offset += len(chunk)
                self._advance(len(chunk))

    def _advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total)

    def _check_abandoned(self) -> None:
        if self._is_abandoned.is_set():
            raise Abandoned


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
