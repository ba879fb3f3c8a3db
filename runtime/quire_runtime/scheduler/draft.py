"""A step while it is being planned."""

import numpy as np

from quire_runtime.kv.shared import SharedBlocks
from quire_runtime.kv.tables import EMPTY, TableWrites
from quire_runtime.scheduler.plan import Admission, Bools, Ints, StepPlan


class StepDraft:
    """Collects what a StepPlan will hold; starts with the running sequences."""

    def __init__(self, rows: Ints, contexts: Ints, queries: Ints, writes: TableWrites) -> None:
        self.rows = rows
        self.contexts = contexts
        self.queries = queries
        self.admissions: list[Admission] = []
        self._admitted: list[tuple[int, int, int]] = []
        self._writes = [writes]
        self._copies: list[tuple[int, int]] = []

    def admit(self, admission: Admission, context: int, query: int, writes: TableWrites) -> None:
        self.admissions.append(admission)
        self._admitted.append((admission.row, context, query))
        self._writes.append(writes)

    def copy(self, source: int, target: int) -> None:
        self._copies.append((source, target))

    def close(self) -> None:
        """Bring the batch into its order: single tokens first."""
        if self._admitted:
            rows, contexts, queries = np.array(self._admitted, np.int32).T
            self.rows = np.concatenate((self.rows, rows))
            self.contexts = np.concatenate((self.contexts, contexts))
            self.queries = np.concatenate((self.queries, queries))
        is_long = self.queries > 1
        if is_long.any():
            order = np.argsort(is_long, kind="stable")
            self.rows, self.contexts, self.queries = self.rows[order], self.contexts[order], self.queries[order]

    def plan(self, samples: Bools, shared: SharedBlocks | None) -> StepPlan:
        """The closed draft as a plan; samples bool [n] in its order."""
        copies = np.array(self._copies, np.int32).reshape(-1, 2)
        return StepPlan(
            rows=self.rows,
            query_lens=self.queries,
            context_lens=self.contexts,
            samples=samples,
            num_decodes=int(np.count_nonzero(self.queries == 1)),
            admissions=self.admissions,
            table_rows=_joined([writes.rows for writes in self._writes]),
            table_columns=_joined([writes.columns for writes in self._writes]),
            table_blocks=_joined([writes.blocks for writes in self._writes]),
            copy_sources=copies[:, 0] if self._copies else EMPTY,
            copy_targets=copies[:, 1] if self._copies else EMPTY,
            shared=shared,
        )


def _joined(parts: list[Ints]) -> Ints:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
