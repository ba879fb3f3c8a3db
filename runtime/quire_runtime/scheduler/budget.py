"""How one step's tokens are divided."""

import numpy as np

from quire_runtime.scheduler.plan import Ints


def mixed_budget(num_decodes: int, waiting: int, target: int, most: int) -> int:
    """Query tokens of a step that holds prompts beside decodes, at most `most`.

    A decode's next token comes when the whole step ends, so prompts are cut to make a step of `target` tokens. Where
    many prompt tokens wait (`waiting`), a step takes half of them instead: then what counts is that they are done.
    Half of `target` is theirs however many decode.
    """
    return min(most, num_decodes + max(target - num_decodes, target // 2, waiting // 2))


def share_budget(pending: Ints, budget: int, longest: int) -> Ints:
    """Query tokens for each running sequence, in the order of service.

    Sequences that need one token come first: a prefill takes what the decodes leave, so that it delays nobody's next
    token. Prefills then take as much as they can, each at most `longest` (0: no limit), in the order given.

    pending int32 [n]: tokens each sequence could compute now, >= 1. Returns int32 [n]; the sum is at most `budget`.
    """
    if len(pending) <= budget and (pending == 1).all():
        return np.ones_like(pending)
    wanted = np.minimum(pending, longest) if longest else pending
    order = np.argsort(pending > 1, kind="stable")
    before = np.cumsum(wanted[order], dtype=np.int64) - wanted[order]
    queries = np.empty_like(pending)
    queries[order] = np.clip(budget - before, 0, wanted[order])
    return queries
