"""How far a part with many runs is, one line each time one of them has ended; what is left, if others take as long."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from typing import TypeVar

T = TypeVar("T")


def each(part: str, over: Sequence[T]) -> Iterator[T]:
    """`over`, telling after each how many are done."""
    began = time.monotonic()
    for number, one in enumerate(over, 1):
        yield one
        _tell(part, number, len(over), began)


def results(part: str, pending: Sequence[Future[T]]) -> list[T]:
    """Of all `pending`, in their order, telling of each as it ends."""
    began = time.monotonic()
    for number, _ in enumerate(as_completed(pending), 1):
        _tell(part, number, len(pending), began)
    return [future.result() for future in pending]


def _tell(part: str, done: int, of: int, began: float) -> None:
    taken = (time.monotonic() - began) / 60
    left = f", about {taken / done * (of - done):.1f} left" if done < of else ""
    print(f"{part}: {done} of {of} runs, {taken:.1f} min{left}", flush=True)
