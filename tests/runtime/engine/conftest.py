"""Engines on tiny models, and Transformers' answers to the same prompts."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from quire_runtime.config import EngineConfig
from quire_runtime.engine.engine import Engine, EngineOutputs
from quire_runtime.engine.messages import PromptLogprobs, TokenLogprobs
from quire_runtime.scheduler.request import FinishReason


class Driver:
    """An engine in this process, run until its requests have ended; asserts that no block leaks."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[tuple[int, int], list[int]] = {}
        self.finish: dict[tuple[int, int], FinishReason] = {}
        self.cached: dict[tuple[int, int], int] = {}
        self.logprobs: dict[tuple[int, int], list[TokenLogprobs]] = {}
        self.prompt_logprobs: dict[int, list[PromptLogprobs]] = {}
        self.errors: dict[int, str] = {}

    def run(self) -> "Driver":
        while self.engine.has_work:
            outputs = self.engine.step()
            if outputs is not None:
                self.take(outputs)
        assert self.engine.stats.kv_blocks_used == 0
        assert self.engine.stats.num_running == self.engine.stats.num_waiting == 0
        return self

    def take(self, outputs: EngineOutputs) -> None:
        for i, (handle, choice) in enumerate(zip(outputs.handles.tolist(), outputs.choices.tolist(), strict=True)):
            key = (handle, choice)
            if outputs.tokens[i] >= 0:
                self.tokens.setdefault(key, []).append(int(outputs.tokens[i]))
            if outputs.finish[i]:
                self.finish[key] = FinishReason(int(outputs.finish[i]))
            if outputs.cached[i] >= 0:
                assert key not in self.cached
                self.cached[key] = int(outputs.cached[i])
            if outputs.logprobs and outputs.logprobs[i] is not None:
                self.logprobs.setdefault(key, []).append(outputs.logprobs[i])
        for part in outputs.prompt_logprobs:
            self.prompt_logprobs.setdefault(part.handle, []).append(part)
        self.errors.update(outputs.errors)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_engine(tiny_model_dir: Callable[..., Path]) -> Callable[..., Engine]:
    """`make_engine(family, **settings)`: an fp32 engine on the CPU over that family's tiny model."""

    def make(family: str = "llama", **settings: Any) -> Engine:
        settings = {"max_num_seqs": 16, "max_model_len": 256, "num_gpu_blocks_override": 200, **settings}
        return Engine(EngineConfig.of(model=str(tiny_model_dir(family)), device="cpu", dtype="float32", **settings))

    return make


@pytest.fixture(scope="session")
def driver_of() -> type[Driver]:
    """`driver_of(engine)`: a Driver over an engine."""
    return Driver


@pytest.fixture
def drive(make_engine: Callable[..., Engine]) -> Callable[..., Driver]:
    """A Driver over a new engine."""
    return lambda family="llama", **settings: Driver(make_engine(family, **settings))


@pytest.fixture(scope="session")
def reference(tiny_model_dir: Callable[..., Path]) -> Callable[..., Any]:
    """`reference(family)` -> the Transformers model in fp32."""
    from transformers import AutoModelForCausalLM

    loaded: dict[str, Any] = {}

    def load(family: str) -> Any:
        if family not in loaded:
            loaded[family] = AutoModelForCausalLM.from_pretrained(tiny_model_dir(family), dtype=torch.float32).eval()
        return loaded[family]

    return load


@pytest.fixture(scope="session")
def greedy(reference: Callable[..., Any]) -> Callable[[str, list[int], int], list[int]]:
    """`greedy(family, prompt, count)`: Transformers' own greedy continuation, end-of-sequence ignored."""
    known: dict[tuple[str, tuple[int, ...]], list[int]] = {}

    def generate(family: str, prompt: list[int], count: int) -> list[int]:
        key = (family, tuple(prompt))
        if len(known.get(key, [])) < count:
            with torch.inference_mode():
                made = reference(family).generate(
                    torch.tensor([prompt]),
                    attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                    do_sample=False,
                    max_new_tokens=count,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            known[key] = made[0, len(prompt) :].tolist()
        return known[key][:count]

    return generate


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Eight prompts of 1 to 90 tokens; the last two begin with the same 48 tokens."""
    rng = random.Random(0)
    lengths = [1, 15, 16, 17, 40, 90]
    apart = [[rng.randrange(3, 320) for _ in range(length)] for length in lengths]
    shared = [rng.randrange(3, 320) for _ in range(48)]
    return [*apart, *([*shared, *(rng.randrange(3, 320) for _ in range(extra))] for extra in (5, 20))]
