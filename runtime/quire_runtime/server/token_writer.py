"""The shortest way of a token to its client, which nearly every token of a stream takes."""

import time

import orjson

from quire_runtime.engine.stream import ChoiceDelta, Stream
from quire_runtime.server.generation import Generation, Part
from quire_runtime.server.protocol import Body
from quire_runtime.server.replay import Comments
from quire_runtime.server.stream import EventWriter


class TokenWriter:
    """Listens to a stream of one choice, and writes events that are text and nothing else where their tokens come in.

    All else goes the way of all news, and so does a token beside which anything else has come, or whose client does not
    keep up. A server sleeps between the steps of its engine: what it touches for a token is what the token costs.
    """

    __slots__ = (
        "_after",
        "_before",
        "_body",
        "_choice",
        "_comments",
        "_generation",
        "_itl",
        "_otherwise",
        "_part",
        "_stream",
    )

    def __init__(
        self,
        generation: Generation,
        part: Part,
        stream: Stream,
        writer: EventWriter,
        comments: Comments | None,
        body: Body,
    ) -> None:
        """part: is generation.single, and has begun; stream: its own."""
        self._generation = generation
        self._part = part
        self._stream = stream
        self._choice = part.choices[0]
        self._before, self._after = writer.around(0)
        self._comments = comments
        self._body = body
        self._itl = generation.metrics.itl
        self._otherwise = stream.tell
        stream.call_on_news(self._hear)

    def _hear(self) -> None:
        part = self._part
        if not part.is_direct or not self._body.is_ready or (delta := self._stream.take_token()) is None:
            self._otherwise()
            return
        now = time.monotonic()
        self._itl.observe(now - part.last_at)
        part.last_at = now
        try:
            if self._comments is None:
                text, comment = self._choice.push_plain(delta.token_ids), b""
            else:
                text, comment = self._push_commented(delta, self._comments)
            if text:
                self._body.write(b"".join((comment, self._before, orjson.dumps(text), self._after)))
        except Exception as error:
            self._generation.break_off(error)

    def _push_commented(self, delta: ChoiceDelta, comments: Comments) -> tuple[str, bytes]:
        """The text that can be shown now, and the comment line before its event."""
        choice = self._choice
        choice.push(delta)
        if not choice.has_news:
            return "", b""
        text, ids, _ = choice.take()
        return text, comments.of(choice, ids, 0)
