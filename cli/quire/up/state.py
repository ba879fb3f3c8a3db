"""What `quire up` leaves on disk for other commands: status, logs, and a pointer to the latest run."""

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from quire_api.errors import UserError
from quire_api.v1alpha1 import LLMDeployment

STATUS = "status.json"
_LATEST = "latest"
_LOCK = "lock"


class AlreadyRunning(UserError):
    """The same file is already being served."""


class NoState(UserError):
    """Nothing has been started here."""


def state_root() -> Path:
    """$XDG_STATE_HOME/quire, by default ~/.local/state/quire."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "quire"


def default_state_dir(file: Path) -> Path:
    """One folder for each resource file."""
    return state_root() / hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]


@dataclass
class StateDir:
    """The folder of one `quire up`, locked while it runs."""

    path: Path
    _lock: TextIO

    @classmethod
    def open(cls, path: Path) -> "StateDir":
        """Create and lock the folder, and point `latest` to it.

        Raises:
            AlreadyRunning: another process holds it.
            UserError: it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / _LOCK).open("a+")
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunning(
                f"another `quire up` already works in {path}; stop it, or give another folder with --state-dir"
            ) from None
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
        except OSError as error:
            raise _unusable(path, error) from None
        state = cls(path.resolve(), lock)
        try:
            state_root().mkdir(parents=True, exist_ok=True)
            write_atomically(state_root() / _LATEST, str(state.path))
        except OSError:
            pass
        return state

    @property
    def routing_table(self) -> Path:
        return self.path / "routing-table.json"

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def termination_log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.end.json"

    def write_status(self, deployments: Sequence[LLMDeployment], file: Path, url: str) -> None:
        """The deployments with their status, as a List that kubectl users know."""
        items = [deployment.to_object() for deployment in deployments]
        about = {"file": str(file), "url": url, "pid": os.getpid(), "writtenAt": datetime.now(UTC).isoformat()}
        document = {"apiVersion": "v1", "kind": "List", "items": items, "quire": about}
        write_atomically(self.path / STATUS, json.dumps(document, indent=1))

    def close(self) -> None:
        self._lock.close()


def _unusable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be used for state: {error.strerror}; give another with --state-dir")


def write_atomically(path: Path, text: str | bytes, mode: int = 0o644) -> None:
    """Readers see the old content or the new, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.touch(mode)
    beside.write_bytes(text.encode() if isinstance(text, str) else text)
    beside.replace(path)


def folder_of(state_dir: Path | None) -> Path:
    """The folder given, or that of the latest run.

    Raises:
        OSError: nothing has run here.
    """
    return state_dir or Path((state_root() / _LATEST).read_text())


def read_status(state_dir: Path | None) -> tuple[dict[str, Any], bool]:
    """The latest (or given) run's status document, and whether that run is still alive.

    Raises:
        NoState: there is none.
    """
    try:
        folder = folder_of(state_dir)
        document = json.loads((folder / STATUS).read_text())
        return document, is_locked(folder)
    except (OSError, ValueError):
        where = f"in {state_dir}" if state_dir else "on this machine"
        raise NoState(f"no `quire up` has left a status {where}; start one with: quire up FILE.yaml") from None


def is_locked(folder: Path) -> bool:
    """Whether a `quire up` holds the folder now."""
    try:
        with (folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except OSError:
        return True
