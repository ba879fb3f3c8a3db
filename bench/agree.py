"""Greedy tokens of the engine in bf16 beside Transformers in fp32: how many differ, and whether rounding explains it.

    python bench/agree.py --model models/quire-tiny                                    on a CPU, a minute
    python bench/agree.py --model m-small --device cuda --out bench/results/agree.jsonl --run 2026-11-27-h200-1

m-small: the Qwen3-0.6B shape with weights of N(0, 0.02), written once under --models. Transformers, in fp32 with the
same bf16 weights, reads each prompt with the engine's own answer, so that every position is judged by itself. A token
that is not the likeliest there counts as noise where its fp32 logit is within EPSILON of the largest, and as wrong
elsewhere; one that is wrong ends this with 1. Prompts are asked alone, together and in chunks.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gpu import COMMON, CONFIGS, origin
from torch import Tensor

from quire import LLM, SamplingParams

EPSILON = 0.05
"""Of the standard deviation of a position's fp32 logits: what bf16 may move one logit against another."""
WAYS: dict[str, dict[str, Any]] = {
    "alone": {"max_num_seqs": 1},
    "together": {},
    "in chunks": {"max_num_batched_tokens": 64},
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of so many positions: tokens that are the likeliest in fp32, those that noise explains, and those it does not.
    largest: of the gaps between the largest logit and a differing token's, in standard deviations; 0 without one."""

    positions: int
    equal: int
    noise: int
    wrong: int
    largest: float

    @property
    def share_noise(self) -> float:
        return self.noise / self.positions


def judge(logits: Tensor, tokens: Tensor, epsilon: float = EPSILON) -> Agreement:
    """logits: fp32 [n, V]; tokens: whole numbers [n], each drawn where the row of logits is."""
    own = logits.gather(1, tokens[:, None]).squeeze(1)
    gaps = (logits.amax(1) - own) / logits.std(1)
    differs = gaps > 0
    wrong = int((gaps >= epsilon).sum())
    return Agreement(
        len(tokens), len(tokens) - int(differs.sum()), int(differs.sum()) - wrong, wrong, round(float(gaps.max()), 4)
    )


def together(parts: Sequence[Agreement]) -> Agreement:
    positions, equal, noise, wrong = (
        sum(getattr(part, name) for part in parts) for name in ("positions", "equal", "noise", "wrong")
    )
    return Agreement(positions, equal, noise, wrong, max(part.largest for part in parts))


class Reference:
    """A checkpoint's weights, as bf16 holds them, in Transformers' model in fp32."""

    def __init__(self, directory: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).float().to(device).eval()
        self._device = device

    @torch.inference_mode()
    def judge(self, prompt: list[int], answer: list[int]) -> Agreement:
        ids = torch.tensor([[*prompt, *answer]], device=self._device)
        logits = self._model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        return judge(logits.float(), ids[0, len(prompt) :])


def prompts_of(vocabulary: int, lengths: Sequence[int]) -> list[list[int]]:
    """The last two share all but their last token."""
    rng = random.Random(0)
    prompts = [[rng.randrange(vocabulary) for _ in range(length)] for length in lengths]
    return [*prompts, [*prompts[-1][:-1], rng.randrange(vocabulary)]]


def agreements(
    directory: Path, device: str, prompts: list[list[int]], count: int, reference: Reference
) -> dict[str, Agreement]:
    """By way: the engine's `count` tokens for each prompt, judged."""
    found = {}
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    room = max(map(len, prompts)) + count
    for way, settings in WAYS.items():
        usual = {"max_num_seqs": len(prompts), "max_model_len": room, "kv_cache_memory": "1Gi"}
        llm = LLM(directory, device=device, dtype="bfloat16", skip_tokenizer_init=True, **{**usual, **settings})
        outputs = llm.generate(prompts, params, use_tqdm=False)
        answers = [list(output.outputs[0].token_ids) for output in outputs]
        assert all(len(answer) == count for answer in answers)
        parts = [reference.judge(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        found[way] = together(parts)
    return found


def random_checkpoint(model: str, folder: Path) -> Path:
    """A model of bench/gpu.py's with weights of N(0, 0.02), the same each time; written once."""
    directory = folder / f"{model}-normal"
    if not (directory / "model.safetensors").exists():
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        config = {**COMMON, **CONFIGS[model], "initializer_range": 0.02}
        shape = AutoConfig.for_model(config.pop("model_type"), **config)
        AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).save_pretrained(directory, max_shard_size="100GB")
    return directory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="m-small, m-8b or a directory")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 15, 64, 200, 700], help="of prompts, in tokens")
    parser.add_argument("--tokens", type=int, default=128, help="drawn for each")
    parser.add_argument("--models", type=Path, default=Path("/tmp/quire-bench-models"), help="where weights are put")
    parser.add_argument("--run", default="", help="one id for everything measured on one machine in one go")
    parser.add_argument("--out", type=Path, help="a line for each way is appended")
    options = parser.parse_args()
    made = options.model in CONFIGS
    directory = random_checkpoint(options.model, options.models) if made else Path(options.model)
    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    reference = Reference(directory, options.device)
    prompts = prompts_of(vocabulary, options.lengths)
    found = agreements(directory, options.device, prompts, options.tokens, reference)
    for way, agreement in found.items():
        line = {
            "model": options.model if made else directory.name,
            **origin(options.run),
            "device": options.device,
            "way": way,
            "epsilon": EPSILON,
            **asdict(agreement),
            "share_noise": round(agreement.share_noise, 5),
        }
        print(json.dumps(line), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    return 1 if any(agreement.wrong for agreement in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
