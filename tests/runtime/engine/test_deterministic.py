"""`--deterministic`: a request's tokens and logprobs are the same to the last bit, whatever else the engine does."""

import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from quire_api.sampling import SamplingParams
from quire_runtime.config import EngineConfig
from quire_runtime.engine.engine import Engine

MODELS = [
    ("llama", "float32", 16),
    ("mistral", "float32", 8),
    ("qwen2", "bfloat16", 16),
    ("qwen3", "bfloat16", 8),
    ("phi3", "float32", 16),
]
"""Family, dtype and tokens in a block: what an answer may depend on."""
ASKED = [
    {"temperature": 0},
    {"temperature": 0, "prompt_logprobs": 2},
    {"temperature": 0.9, "seed": 7},
    {"temperature": 1.1},
    {"temperature": 1.0, "top_p": 0.8, "top_k": 40, "seed": 3, "n": 2},
    {"temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.4},
    {"temperature": 0, "logprobs": None},
]


def make_requests() -> list[tuple[list[int], SamplingParams]]:
    """Eight prompts of 1 to 62 tokens; half of them begin with the same 32 tokens."""
    rng = random.Random(0)
    shared = [rng.randrange(3, 320) for _ in range(32)]
    requests = []
    for index, length in enumerate([1, 15, 17, 60, 0, 1, 16, 30]):
        start = shared if index >= 4 else []
        prompt = [*start, *(rng.randrange(3, 320) for _ in range(length))]
        asked = {"logprobs": 3, **ASKED[index % len(ASKED)]}
        requests.append((prompt, SamplingParams(max_tokens=8 + 2 * index, ignore_eos=True, **asked)))
    return requests


REQUESTS = make_requests()


def add(driver, number: int) -> None:
    driver.engine.add(number, *REQUESTS[number])


def seen(driver, number: int) -> list[object]:
    """Everything that a client learns of a request, as exact floats."""
    _, params = REQUESTS[number]
    return [
        [
            (driver.tokens[number, choice], [vars_of(one) for one in driver.logprobs.get((number, choice), [])])
            for choice in range(params.n)
        ],
        [vars_of(one) for part in driver.prompt_logprobs.get(number, []) for one in part.positions],
    ]


def vars_of(one) -> tuple[list[int], list[float], int]:
    return one.token_ids, one.logprobs, one.rank


@pytest.fixture(scope="module")
def alone(tiny_model_dir, driver_of):
    """`alone(*model)`: what each request is answered when nothing runs beside it."""
    known = {}

    def answers(family: str, dtype: str, block_size: int) -> list[list[object]]:
        key = family, dtype, block_size
        if key not in known:
            driver = driver_of(engine_of(tiny_model_dir, key, max_num_seqs=2, enable_prefix_caching=False))
            known[key] = []
            for number in range(len(REQUESTS)):
                add(driver, number)
                driver.run()
                known[key].append(seen(driver, number))
        return known[key]

    return answers


def engine_of(tiny_model_dir, model: tuple[str, str, int], **more) -> Engine:
    family, dtype, block_size = model
    usual = {"max_model_len": 256, "num_gpu_blocks_override": 3200 // block_size, "device": "cpu", "seed": 11}
    usual |= {"model": str(tiny_model_dir(family)), "dtype": dtype, "block_size": block_size, "deterministic": True}
    return Engine(EngineConfig.of(**{**usual, **more}))


@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    model=st.sampled_from(MODELS),
    rows=st.integers(2, 24),
    budget=st.sampled_from([13, 24, 100, 8192]),
    chunk=st.sampled_from([0, 7, 33]),
    tokens=st.sampled_from([3200, 176]),
    caching=st.booleans(),
    is_async=st.booleans(),
    order=st.permutations(range(len(REQUESTS))),
    pauses=st.lists(st.integers(0, 4), min_size=len(REQUESTS), max_size=len(REQUESTS)),
)
def test_answers_do_not_depend_on_the_company(
    tiny_model_dir, driver_of, alone, model, rows, budget, chunk, tokens, caching, is_async, order, pauses
):
    """Nor on chunks, prefix hits and preemptions: the small cache holds two of the longest sequences."""
    engine = engine_of(
        tiny_model_dir,
        model,
        max_num_seqs=rows,
        max_num_batched_tokens=max(budget, rows),
        long_prefill_token_threshold=chunk,
        num_gpu_blocks_override=tokens // model[2],
        enable_prefix_caching=caching,
        async_scheduling=is_async,
    )
    driver = driver_of(engine)
    for number, pause in zip(order, pauses, strict=True):
        add(driver, number)
        for _ in range(pause):
            if (outputs := engine.step()) is not None:
                driver.take(outputs)
    driver.run()
    expected = alone(*model)
    for number in order:
        assert seen(driver, number) == expected[number]


@pytest.mark.parametrize("model", [("qwen3", "bfloat16", 8), ("mistral", "float32", 8)], ids=str)
def test_preemptions_and_hits_are_among_the_cases(tiny_model_dir, driver_of, alone, model):
    """What the property above meets only by chance, once for certain."""
    expected = alone(*model)
    driver = driver_of(engine_of(tiny_model_dir, model, num_gpu_blocks_override=20, max_num_batched_tokens=100))
    for number in range(len(REQUESTS)):
        add(driver, number)
    driver.run()
    assert driver.engine.stats.num_preemptions > 0
    assert max(driver.cached.values()) >= 32
    assert [seen(driver, number) for number in range(len(REQUESTS))] == expected


def test_a_batch_of_many_says_what_each_says_alone(tiny_model_dir, driver_of, alone):
    model = ("llama", "float32", 16)
    expected = alone(*model)
    driver = driver_of(engine_of(tiny_model_dir, model, max_num_seqs=256, num_gpu_blocks_override=4000))
    copies = [number for number in range(2) for _ in range(128)]
    for handle, number in enumerate(copies):
        driver.engine.add(handle, *REQUESTS[number])
    driver.run()
    for handle, number in enumerate(copies):
        choices, _ = expected[number]
        assert driver.tokens[handle, 0] == choices[0][0]
        assert [vars_of(one) for one in driver.logprobs.get((handle, 0), [])] == choices[0][1]


def test_a_request_without_a_seed_draws_the_same_each_time(tiny_model_dir, driver_of):
    driver = driver_of(engine_of(tiny_model_dir, MODELS[0]))
    for handle in range(3):
        driver.engine.add(handle, [5, 6, 7], SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True))
        driver.run()
    assert driver.tokens[0, 0] == driver.tokens[1, 0] == driver.tokens[2, 0]


def test_its_greedy_tokens_are_those_of_the_engine_without_it(tiny_model_dir, driver_of):
    found = []
    for is_deterministic in (True, False):
        driver = driver_of(engine_of(tiny_model_dir, MODELS[0], deterministic=is_deterministic))
        for number, (prompt, _) in enumerate(REQUESTS):
            driver.engine.add(number, prompt, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
        found.append(driver.run().tokens)
    assert found[0] == found[1]
