"""How often and how patiently a store is asked again."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from quire_runtime.agent.errors import SourceUnreachable

T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """Waits double from `first_s` to `longest_s`, each cut by up to a half: replicas do not march in step."""

    attempts: int = 6
    """Tries in a row that may fail without having got anything."""
    first_s: float = 1.0
    longest_s: float = 30.0
    pause: Callable[[float], None] = time.sleep
    """Waits; may raise to end the whole undertaking."""
    heard: Callable[[SourceUnreachable], None] = lambda _: None
    """Told why, before each wait."""

    def wait(self, failures: int, error: SourceUnreachable) -> None:
        """Wait after `failures` (>= 1) failed tries in a row, of which `error` is the last."""
        self.heard(error)
        self.pause(min(self.first_s * 2 ** (failures - 1), self.longest_s) * random.uniform(0.5, 1.0))

    def call(self, what: Callable[[], T]) -> T:
        """What `what` returns.

        Raises:
            SourceUnreachable: from its last try.
        """
        for failures in range(1, self.attempts):
            try:
                return what()
            except SourceUnreachable as error:
                self.wait(failures, error)
        return what()


ONCE = Retry(attempts=1)
