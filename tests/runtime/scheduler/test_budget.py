"""How one step's tokens are divided."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quire_runtime.scheduler.budget import mixed_budget, share_budget


def shares(pending: list[int], budget: int, longest: int = 0) -> list[int]:
    return share_budget(np.array(pending, np.int32), budget, longest).tolist()


def test_decodes_first_then_prefills_in_order() -> None:
    assert shares([1, 1, 1], 8) == [1, 1, 1]
    assert shares([5, 1, 9, 1], 8) == [5, 1, 1, 1]
    assert shares([5, 1, 9, 1], 4) == [2, 1, 0, 1]
    assert shares([1, 1, 1], 2) == [1, 1, 0]


def test_no_prefill_takes_more_than_the_longest() -> None:
    assert shares([50, 1, 9], 20, longest=8) == [8, 1, 8]


def test_a_step_of_prompts_and_decodes_has_the_target_tokens() -> None:
    assert mixed_budget(num_decodes=40, waiting=900, target=512, most=8192) == 512
    assert mixed_budget(num_decodes=40, waiting=9000, target=512, most=8192) == 4540
    assert mixed_budget(num_decodes=40, waiting=90000, target=512, most=8192) == 8192
    assert mixed_budget(num_decodes=500, waiting=900, target=512, most=8192) == 950
    assert mixed_budget(num_decodes=500, waiting=100, target=512, most=600) == 600


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(1, 60), st.integers(0, 20))
def test_the_budget_is_used_up_and_never_exceeded(pending: list[int], budget: int, longest: int) -> None:
    queries = shares(pending, budget, longest)
    caps = [min(each, longest) if longest else each for each in pending]
    assert sum(queries) == min(budget, sum(caps))
    assert all(0 <= query <= cap for query, cap in zip(queries, caps, strict=True))
