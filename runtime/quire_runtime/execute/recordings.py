"""Steps recorded as CUDA graphs: which there are, which is to be recorded next, and the memory they share."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

Shape = TypeVar("Shape", bound=Hashable)
Result = TypeVar("Result")


LEAST_FREE = 2**29
"""Bytes of a GPU that are left free: with less, nothing more is recorded, and steps without a graph run eagerly."""
PATIENCE = 8
"""A shape that another can carry out is recorded within a step when it is asked for so often. On an H200 that takes 13
to 16 ms of the host, of which a step that runs meanwhile hides its own."""


class Recordings(Generic[Shape, Result]):
    """Recorded steps by their padded shape.

    A shape that is not there is wished for: it is recorded when the engine has nothing else to do (`record_wished`), or
    within a step when it is asked for again, whichever comes first.

    shapes: all that may be recorded, the most useful first. has_room: is there memory to record one more?
    """

    def __init__(
        self, shapes: Iterable[Shape], record: Callable[[Shape], Result], has_room: Callable[[], bool]
    ) -> None:
        self._record = record
        self._has_room = has_room
        self._wished: dict[Shape, int] = {}
        self._rest = dict.fromkeys(shapes)
        self._recorded: dict[Shape, Result] = {}

    @property
    def recorded(self) -> frozenset[Shape]:
        """Shapes whose steps are there."""
        return frozenset(self._recorded)

    def find(self, shape: Shape, covering: Iterable[Shape] = ()) -> Result | None:
        """The step of a shape; until that is recorded the first recorded one of `covering`, or None."""
        if (found := self._recorded.get(shape)) is not None:
            return found
        asked = self._wished[shape] = self._wished.get(shape, 0) + 1
        found = next((found for other in covering if (found := self._recorded.get(other)) is not None), None)
        if asked >= (2 if found is None else PATIENCE) and self._has_room():
            return self.record(shape)
        return found

    def record(self, shape: Shape) -> Result:
        result = self._record(shape)
        self._recorded[shape] = result
        self._wished.pop(shape, None)
        self._rest.pop(shape, None)
        return result

    def record_wished(self) -> bool:
        """Record what was asked for first of all that is wished for; False if nothing was recorded."""
        return self._record_first(self._wished)

    def record_rest(self) -> bool:
        """Record the most useful of what nobody has asked for; False if nothing was recorded."""
        return self._record_first(self._rest)

    def _record_first(self, shapes: Iterable[Shape]) -> bool:
        shape = next(iter(shapes), None)
        if shape is None or not self._has_room():
            return False
        self.record(shape)
        return True


class GraphMemory:
    """The pool of memory of all graphs of a device, of which one runs at a time.

    A graph's results lie where other graphs may put what they compute: they are read before another one is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool: tuple[int, int] | None = None

    def has_room(self) -> bool:
        return torch.cuda.mem_get_info(self.device)[0] >= LEAST_FREE

    def rehearse(self, run: Callable[[], Result]) -> None:
        """Run what is of a kind that has not run yet: libraries make what they keep at their first call."""
        with self._on_its_stream():
            run()

    def record(self, run: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        """The graph of what `run` launches, and what it returned: nothing is computed."""
        graph = torch.cuda.CUDAGraph()
        with self._on_its_stream():
            graph.capture_begin(*([] if self._pool is None else [self._pool]), capture_error_mode="thread_local")
            try:
                result = run()
            finally:
                graph.capture_end()
        self._pool = self._pool or graph.pool()
        return graph, result

    @contextmanager
    def _on_its_stream(self) -> Iterator[None]:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)
