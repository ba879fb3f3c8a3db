"""What a client has of a stream, so that another replica can go on with it; quire_api.replay is the contract.

The lines are only kept while the stream runs. They are read when it has to be continued, which is rare.
"""

import random
import time

import msgspec

from quire_api.replay import COMMENT, FAILED, RESUME_FIELD, MalformedReplay, Resume, Terms, read_comments

_DONE = b"data: [DONE]"
_SEED_BITS = 63


class Record:
    """The comment lines of one stream, taken from its events on their way.

    failure: what the replica says has failed; no event after it is passed on. is_done: the last event has passed.
    """

    __slots__ = ("_before", "_lines", "_untaken", "failure", "is_done")

    def __init__(self, before: Resume | None = None) -> None:
        """before: what replicas before this one have given."""
        self._before = before
        self._lines = bytearray()
        self._untaken = 0
        self.failure = ""
        self.is_done = False

    def strip(self, data: bytes) -> bytes:
        """Whole events without their comment lines. `data` ends where an event does."""
        if data.startswith(COMMENT) and data.find(b"\n\n") == len(data) - 2 and not data.startswith(FAILED):
            cut = data.index(b"\n") + 1
            line = data[:cut]
            self._lines += line
            self._untaken += _tokens_in(line)
            return data[cut:]
        kept = []
        for event in data.split(b"\n\n")[:-1]:
            line, _, rest = event.partition(b"\n")
            if line.startswith(FAILED):
                self.failure = line[len(FAILED) :].decode("latin-1")
                break
            if line.startswith(COMMENT):
                self._lines += line + b"\n"
                self._untaken += _tokens_in(line)
                event = rest
            elif line == _DONE:
                self.is_done = True
            kept.append(event + b"\n\n")
        return b"".join(kept)

    def take_tokens(self) -> int:
        """How many tokens the events have brought that passed since this was asked last."""
        taken, self._untaken = self._untaken, 0
        return taken

    def read(self) -> Resume:
        """
        Raises:
            MalformedReplay: the replica's lines are not those of the contract.
        """
        return read_comments(bytes(self._lines), self._before)

    def output_tokens(self) -> int:
        """Tokens that the client has, of replicas before this one too; 0 if they cannot be told."""
        try:
            return self.read().output_tokens
        except MalformedReplay:
            return 0


def _tokens_in(line: bytes) -> int:
    """Of an event's comment line; cheap, as there is one a token. `-` and `usage` mean none, commas part ids only."""
    return 0 if b"-" in line or b"usage" in line else line.count(b",") + 1


def new_terms() -> Terms:
    """Seed and time for a stream that begins."""
    return Terms(seed=random.getrandbits(_SEED_BITS), created=int(time.time()))


def resumed_body(body: bytes, resume: Resume) -> bytes:
    """`body`, a JSON object with at least one field, with what is to be resumed as its last field.

    The last of several fields of one name counts, so that a client's own is overruled.
    """
    cut = body.rindex(b"}")
    return b'%b,"%b":%b}' % (body[:cut], RESUME_FIELD.encode(), msgspec.json.encode(resume))
