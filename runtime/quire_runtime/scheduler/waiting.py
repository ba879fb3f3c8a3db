"""The sequences that wait for a row."""

from heapq import heapify, heappop, heappush

from quire_runtime.scheduler.sequence import Sequence


class WaitingQueue:
    """Sequences by rank; every operation is O(log n) amortised, leaving from the middle included."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Sequence]] = []
        self._count = 0
        self.num_tokens = 0
        """Tokens that the sequences were to compute when they came, together."""

    def __len__(self) -> int:
        return self._count

    def push(self, sequence: Sequence, pending: int) -> None:
        """pending: tokens that it is to compute once it is served."""
        sequence.is_waiting, sequence.pending = True, pending
        heappush(self._heap, (sequence.rank, sequence))
        self._count += 1
        self.num_tokens += pending

    def first(self) -> Sequence:
        """The sequence to be served next; it stays in the queue, which must not be empty."""
        while not self._heap[0][1].is_waiting:
            heappop(self._heap)
        return self._heap[0][1]

    def discard(self, sequence: Sequence) -> None:
        """Take a waiting sequence out, wherever it stands."""
        sequence.is_waiting = False
        self._count -= 1
        self.num_tokens -= sequence.pending
        if self._heap[0][1] is sequence:
            heappop(self._heap)
        elif len(self._heap) > 2 * self._count + 16:
            self._heap = [entry for entry in self._heap if entry[1].is_waiting]
            heapify(self._heap)
