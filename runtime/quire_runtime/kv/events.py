"""Writes down what changes in the prefix index, run by run, until somebody takes it."""

from quire_api.kv_events import Cleared, Operation, Removed, Stored, join_keys
from quire_runtime.kv.pool import Ints


class EventLog:
    """A PrefixListener that gathers operations while `is_on`, and costs one comparison a block while it is not.

    Neighbouring events of one kind become one operation: a chain stored in a row is one `Stored`.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._operations: list[Operation] = []
        self._parent: bytes | None = None
        self._tail: bytes | None = None
        self._stored: list[bytes] = []
        self._removed: list[bytes] = []

    def stored(self, key: bytes, parent: bytes, tokens: Ints) -> None:
        if not self.is_on:
            return
        if parent != self._tail:
            self._end_run()
            self._parent = parent
        self._stored.append(key)
        self._tail = key

    def removed(self, key: bytes) -> None:
        if not self.is_on:
            return
        if self._stored:
            self._end_run()
        self._removed.append(key)

    def cleared(self) -> None:
        if self.is_on:
            self._end_run()
            self._operations.append(Cleared())

    def take(self) -> list[Operation]:
        """What has happened since the last `take`, in order."""
        self._end_run()
        taken, self._operations = self._operations, []
        return taken

    def _end_run(self) -> None:
        if self._stored:
            assert self._parent is not None
            self._operations.append(Stored(self._parent, join_keys(self._stored)))
            self._stored = []
        elif self._removed:
            self._operations.append(Removed(join_keys(self._removed)))
            self._removed = []
        self._tail = None
