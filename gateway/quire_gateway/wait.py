"""How long one request has waited, and what its client is told of it."""

import asyncio
import time
from dataclasses import dataclass

from quire_api import wire
from quire_gateway.request import Headers

_QUEUE_MS = wire.HEADER_QUEUE_MS.encode()


@dataclass(slots=True)
class Wait:
    """How long and where in the queue one request has been held."""

    deadline: float
    """Time of the loop's clock."""
    position: int = 0
    """1 for the first of those held; 0 for a request that never was."""
    seconds: float = 0.0

    def headers(self) -> Headers:
        """What the client is told of it."""
        told = [(_QUEUE_MS, b"%.0f" % (self.seconds * 1000))]
        if self.position:
            until = time.time() + self.deadline - asyncio.get_running_loop().time()
            told.append((wire.HEADER_QUEUE_POSITION.encode(), str(self.position).encode()))
            told.append((wire.HEADER_QUEUE_DEADLINE.encode(), f"{until:.3f}".encode()))
        return told
