"""Our engine, or vLLM, on this GPU: one JSON line a repetition, so that both can be measured in one run.

    python bench/gpu.py --engine quire --model m-8b --plan w2:3,w1:3,w5:2 --out h200.jsonl --run 2026-11-23a
    python bench/gpu.py --engine vllm  --model m-8b --plan w2:3,w1:3,w5:2 --out h200.jsonl --run 2026-11-23a

Workloads (bench/workloads.py): w1 and w1b throughput; w2 one request; w3 long prompts (--max-model-len 16384); w4 a
shared prefix; w5 decode steps at several batch sizes; long: contexts of 32k and 128k (--max-model-len 131072). Greedy,
end-of-sequence ignored, dummy weights in bf16, prompts as token ids. A repetition changes the ids; the prefix cache is
emptied before each, unless the workload is about it. Every workload is run twice before it is timed, w1b and long are
not. A line's wall_s is read on the host around one call with all requests.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import workloads

ROOT = Path(__file__).resolve().parent.parent
CONFIGS: dict[str, dict[str, Any]] = {
    "m-small": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": True,
    },
    "m-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
    },
}
COMMON = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16"}
W5_BATCHES = (1, 8, 32, 64, 128, 256)
WARM_UP = 50
"""Repetition number of the run before the timed ones."""
Requests = Sequence[tuple[list[int], int]]


class Engine:
    """The offline class `LLM` of our engine or of vLLM: the same arguments, as far as both have them."""

    def __init__(self, name: str, directory: Path, max_model_len: int, **options: Any) -> None:
        module = importlib.import_module({"quire": "quire", "vllm": "vllm"}[name])
        self._name = name
        self.version = module.__version__
        self._params = module.SamplingParams
        self._extra = {"detokenize": False} if name == "vllm" else {}
        self.llm = module.LLM(
            model=str(directory),
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=max_model_len,
            gpu_memory_utilization=0.85,
            **options,
        )

    @property
    def startup_phases(self) -> dict[str, float]:
        """Seconds of our engine's start by phase; empty for others."""
        if self._name != "quire":
            return {}
        return {name: round(value, 3) for name, value in self.llm.engine.loaded.startup_s.items()}

    def run(self, requests: Requests) -> float:
        """Wall seconds of one call."""
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
        params = [
            self._params(temperature=0.0, ignore_eos=True, max_tokens=count, **self._extra) for _, count in requests
        ]
        started = time.perf_counter()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        wall_s = time.perf_counter() - started
        assert [len(output.outputs[0].token_ids) for output in outputs] == [count for _, count in requests]
        return wall_s

    def reset(self) -> None:
        self.llm.reset_prefix_cache()


class Bench:
    """Runs workloads on an engine and appends a line for each repetition to `out`."""

    def __init__(self, engine: Engine, out: Path, base: dict[str, Any]) -> None:
        self.engine = engine
        self.out = out
        self.base = base

    def record(self, workload: str, rep: int, wall_s: float, **more: Any) -> None:
        line = {**self.base, "workload": workload, "rep": rep, "wall_s": round(wall_s, 5), **more}
        with self.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({key: value for key, value in line.items() if key not in self.base}), flush=True)

    def timed(self, requests: Requests, reset: bool = True) -> float:
        if reset:
            self.engine.reset()
        return self.engine.run(requests)

    def series(self, name: str, make: Callable[[int], Requests], reps: int, warm: bool = True) -> float:
        """The median of `reps` repetitions."""
        for rep in range(WARM_UP, WARM_UP + 2) if warm else ():
            self.timed(make(rep))
        walls = []
        for rep in range(reps):
            requests = make(rep)
            walls.append(self.timed(requests))
            tokens = sum(count for _, count in requests)
            self.record(name, rep, walls[-1], output_tokens=tokens, output_tok_s=round(tokens / walls[-1], 1))
        return statistics.median(walls)

    def w1(self, reps: int) -> None:
        self.series("w1", lambda rep: workloads.w1(rep), reps)

    def w1b(self, reps: int) -> None:
        self.series("w1b", lambda rep: workloads.w1b(rep), reps, warm=False)

    def w2(self, reps: int) -> None:
        whole = self.series("w2", lambda rep: workloads.w2(rep, 256), reps)
        first = self.series("w2_out1", lambda rep: workloads.w2(rep + 60, 1), reps)
        tpot_ms, ttft_ms = round((whole - first) / 255e-3, 4), round(first * 1e3, 3)
        self.record("w2_summary", 0, whole, reps=reps, tpot_ms=tpot_ms, ttft_ms=ttft_ms)

    def w3(self, reps: int) -> None:
        self.series("w3_8192x1", workloads.w3_single, reps)
        self.series("w3_2048x16", workloads.w3_batch, reps)

    def w4(self, reps: int) -> None:
        kinds = (("cold", 0, True), ("warm_new_suffix", 1, False), ("warm_identical", 1, False))
        for rep in (WARM_UP, WARM_UP + 1):
            for _, suffix, reset in kinds:
                self.timed(workloads.w4(rep, suffix), reset)
        for rep in range(reps):
            for name, suffix, reset in kinds:
                self.record(f"w4_{name}", rep, self.timed(workloads.w4(rep, suffix), reset))

    def w5(self, reps: int) -> None:
        """Step times: wall(128 tokens out) - wall(1 token out), prompts not cached and cached."""
        for batch in W5_BATCHES:
            for rep in (WARM_UP, WARM_UP + 1):
                for count in (128, 1):
                    self.timed(workloads.w5(batch, rep, count), reset=count == 128)
            walls: dict[str, list[float]] = {name: [] for name in ("full", "cached_full", "cached_first", "first")}
            for rep in range(reps):
                for name, count, reset in (
                    ("full", 128, True),
                    ("cached_full", 128, False),
                    ("cached_first", 1, False),
                    ("first", 1, True),
                ):
                    walls[name].append(self.timed(workloads.w5(batch, rep, count), reset))
            full, cached, cached_first, first = (statistics.median(walls[name]) for name in walls)
            self.record(
                f"w5_{batch}",
                0,
                full,
                step_ms=round((full - first) / 127e-3, 4),
                cached_step_ms=round((cached - cached_first) / 127e-3, 4),
                first_s=round(first, 5),
                reps=reps,
            )

    def long(self, reps: int) -> None:
        """A prompt that fills the window of 131,072 tokens but for its one answer, and steps of 8 sequences of 32k."""
        self.series("long_131071x1", workloads.long_single, reps, warm=False)
        count = 128
        for rep in range(reps):
            walls = [
                self.timed(workloads.long_batch(rep, out), reset)
                for out, reset in ((1, True), (count + 1, False), (1, False))
            ]
            step_ms = round((walls[1] - walls[2]) / count * 1e3, 4)
            self.record("long_32768x8", rep, walls[1], step_ms=step_ms, first_s=round(walls[0], 5))


def write_config(model: str, folder: Path) -> Path:
    directory = folder / model
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**COMMON, **CONFIGS[model]}))
    return directory


def options_of(pairs: list[str]) -> dict[str, Any]:
    """`name=value` settings of the engine; whole numbers and booleans are read as such."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, value = pair.split("=", 1)
        found[name] = {"true": True, "false": False}.get(value, int(value) if value.isdigit() else value)
    return found


def commit() -> str:
    """What $QUIRE_COMMIT says, where the source was carried here without its history; else this checkout's."""
    if given := os.environ.get("QUIRE_COMMIT"):
        return given
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def origin(run: str) -> dict[str, str]:
    """What each line says of where and when it was read; `run`: one id for everything of one machine in one go."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "run": run,
        "machine": f"{name}, {platform.processor() or platform.machine()} x {os.cpu_count()}",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Workloads on one engine and one GPU.")
    parser.add_argument("--engine", choices=["quire", "vllm"], required=True)
    parser.add_argument("--model", choices=list(CONFIGS), required=True)
    parser.add_argument("--plan", required=True, help="name[:repetitions],...; names: w1 w1b w2 w3 w4 w5")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", required=True, help="one id for everything measured on one machine in one go")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--models", type=Path, default=Path("/tmp/quire-bench-models"), help="where configs are put")
    parser.add_argument("--option", action="append", default=[], help="name=value for the engine")
    options = parser.parse_args()
    import torch  # noqa: F401 (its import is no part of the start)

    started = time.perf_counter()
    settings = options_of(options.option)
    directory = write_config(options.model, options.models)
    engine = Engine(options.engine, directory, options.max_model_len, **settings)
    base = {
        "engine": options.engine,
        "version": engine.version,
        "model": options.model,
        **origin(options.run),
        "settings": {"max_model_len": options.max_model_len, **settings},
    }
    bench = Bench(engine, options.out, base)
    startup_s = time.perf_counter() - started
    bench.record("startup", 0, startup_s, phases=engine.startup_phases)
    failed = 0
    for item in options.plan.split(","):
        name, _, reps = item.partition(":")
        try:
            getattr(bench, name)(int(reps or 1))
        except Exception as error:
            failed += 1
            print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
