"""How many tokens an answer has, without parsing it: a stream's comment lines name each, a whole answer the number.

A stream without them (of an engine that does not write them, or with --max-moves 0) is taken to bring one an event.
"""

import re
from collections.abc import Callable

_TELL_EVERY = 16
_TAIL_BYTES = 1024
# Inside a text the quotes would be escaped.
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,9})')
_DONE = b"data: [DONE]"
_USAGE = b'"choices":[]'


class OutputCount:
    """Tells `on_written` of tokens as they come, some at a time."""

    __slots__ = ("_on_written", "_tail", "_untold", "told")

    def __init__(self, on_written: Callable[[int], None]) -> None:
        self._on_written = on_written
        self._tail = b""
        self._untold = 0
        self.told = 0

    def saw_tokens(self, tokens: int) -> None:
        """So many have come in a stream that tells."""
        self._untold += tokens
        if self._untold >= _TELL_EVERY:
            self.tell()

    def saw_events(self, data: bytes) -> None:
        """`data` is whole events of a stream that does not."""
        self._untold += data.count(b"\n\n") - (data.find(_DONE) >= 0) - data.count(_USAGE)
        if self._untold >= _TELL_EVERY:
            self.tell()

    def saw_body(self, data: bytes) -> None:
        """`data` is a part of a whole answer."""
        self._tail = data[-_TAIL_BYTES:] if len(data) >= _TAIL_BYTES else (self._tail + data)[-_TAIL_BYTES:]

    def end(self, *, is_stream: bool) -> None:
        """Nothing more comes."""
        if not is_stream:
            found = _COMPLETION_TOKENS.findall(self._tail)
            self._untold = int(found[-1]) if found else 0
            self._tail = b""
        self.tell()

    def tell(self) -> None:
        if self._untold:
            self.told += self._untold
            self._on_written(self._untold)
            self._untold = 0
