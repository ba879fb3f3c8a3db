"""What a directory holds of which source: the marker that says complete, and the lock of whoever fetches."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from quire_runtime.agent.store import RemoteFile
from quire_runtime.agent.wanted import weight_bytes

FOLDER = ".quire"
LOCK_POLL_S = 0.5
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class Record:
    """`.quire/record.json` of a model's directory, replaced atomically after each file and once more at the end.

    A file is listed once its content was verified and stands under its own name; what is on its way lies in
    `.quire/partial`. Files of an earlier source that this one has not are removed at the end.
    """

    def __init__(self, directory: Path, source: str) -> None:
        self.directory = directory
        self._source = source
        self._path = directory / FOLDER / "record.json"
        self._lock = threading.Lock()
        self._listed: dict[str, tuple[int, str]] = {}
        self._is_complete = False
        try:
            written = json.loads(self._path.read_text())
            self._listed = {name: (int(size), str(identity)) for name, (size, identity) in written["files"].items()}
            self._is_complete = bool(written["complete"]) and written["source"] == source
        except (OSError, ValueError, KeyError, TypeError):
            pass

    @property
    def is_complete(self) -> bool:
        """All files of this source stand here with their sizes."""
        return self._is_complete and all(self._stands(name, size) for name, (size, _) in self._listed.items())

    @property
    def total_bytes(self) -> int:
        return sum(size for size, _ in self._listed.values())

    @property
    def weight_bytes(self) -> int:
        return weight_bytes((name, size) for name, (size, _) in self._listed.items())

    def has(self, file: RemoteFile) -> bool:
        """Whether this very content was fetched and verified before."""
        return self._listed.get(file.name) == (file.size, file.identity) and self._stands(file.name, file.size)

    def add(self, file: RemoteFile) -> None:
        with self._lock:
            self._listed[file.name] = (file.size, file.identity)
            self._write(complete=False)

    def complete(self, files: list[RemoteFile]) -> None:
        """Mark the directory as complete with exactly these files."""
        names = {file.name for file in files}
        for stale in set(self._listed) - names:
            self.path_of(stale).unlink(missing_ok=True)
        for left in self.partials.glob("*"):
            left.unlink()
        self._listed = {file.name: (file.size, file.identity) for file in files}
        self._write(complete=True)

    def path_of(self, name: str) -> Path:
        return self.directory / name

    def partial_of(self, file: RemoteFile) -> Path:
        """Where its first bytes are kept until it is whole; other contents have other places."""
        mark = hashlib.sha256(f"{file.name}\n{file.identity}".encode()).hexdigest()[:16]
        return self.partials / f"{file.name.rpartition('/')[2]}.{mark}"

    @property
    def partials(self) -> Path:
        return self.directory / FOLDER / "partial"

    def _stands(self, name: str, size: int) -> bool:
        try:
            return self.path_of(name).stat().st_size == size
        except OSError:
            return False

    def _write(self, *, complete: bool) -> None:
        content = {"source": self._source, "complete": complete, "files": self._listed}
        waiting = self._path.with_suffix(".new")
        with waiting.open("w") as out:
            json.dump(content, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        waiting.replace(self._path)
        self._is_complete = complete


@contextlib.contextmanager
def alone_in(directory: Path, pause: Callable[[float], None], waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the directory's lock; `waiting` is called once if somebody else holds it, `pause` while that lasts.

    On a file system without locks everybody is taken to be alone.
    """
    folder = directory / FOLDER
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        has_told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in NO_LOCKS:
                    break
                if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                    raise
            if not has_told:
                waiting()
                has_told = True
            pause(LOCK_POLL_S)
        yield
