"""Stop strings on text that arrives in pieces."""

from collections.abc import Sequence


class StopMatcher:
    """Releases text up to the first stop string, however the pieces are cut.

    The match is the one that is complete first; of several that end together, the longest. Text that may yet become a
    stop string is held back.

    stopped: the stop string that was met, or None; nothing is released after it.
    """

    __slots__ = ("_beginnings", "_held", "_include", "_stop", "stopped")

    def __init__(self, stop: Sequence[str], include: bool = False) -> None:
        self._stop = [text for text in stop if text]
        self._beginnings = {text[0] for text in self._stop}
        self._include = include
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """Take `text`, return what can be shown now."""
        if self.stopped is not None:
            return ""
        text = self._held + text
        if self._beginnings.isdisjoint(text):
            return text
        found = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            end, start, self.stopped = min(found)
            self._held = ""
            return text[: end if self._include else start]
        keep = max(_open_length(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What is still held, once no more text comes."""
        held, self._held = self._held, ""
        return held


def _open_length(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
