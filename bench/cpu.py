"""Our engine beside Transformers `generate` on this machine: one model, one run, the same threads and dtype.

    make bench-cpu
    .venv/bin/python bench/cpu.py --threads 2 --dtype float32

Workload: the first 64 requests of W1 (bench/workloads.py) with all lengths divided by 4, greedy, end-of-sequence
ignored, exactly the asked number of tokens each. Transformers runs them one by one ("sequential"), and in left-padded
static batches in arrival order ("static"): of several batch sizes its best counts. Tokens beyond a request's own
length, which a static batch computes while it waits for its longest, are not counted. Without models/quire-tiny a
random model of the same shape is made.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

# Spinning threads would fight over the cores of a busy machine; it holds for both sides alike.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers
from rich.console import Console
from rich.table import Table
from workloads import w1

from quire import LLM, SamplingParams

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = ROOT / "models" / "quire-tiny"
QWEN3_SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
STATIC_SIZES = (16, 32, 64)
Requests = list[tuple[list[int], int]]
console = Console()


def requests(vocab_size: int, count: int, divisor: int, rep: int) -> Requests:
    """W1 with lengths divided and ids folded into the vocabulary; rep changes the ids, never the lengths."""
    return [
        ([token % vocab_size for token in prompt[: len(prompt) // divisor]], out // divisor)
        for prompt, out in w1(rep)[:count]
    ]


class Transformers:
    """The model as Transformers runs it."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        self.model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=None)

    def generate(self, group: Requests) -> list[list[int]]:
        """One padded batch; every request is computed to the longest output and cut to its own."""
        width = max(len(prompt) for prompt, _ in group)
        ids = torch.zeros(len(group), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, (prompt, _) in enumerate(group):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        longest = max(out for _, out in group)
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=longest, min_new_tokens=longest, use_cache=True
            )
        return [row[width : width + out].tolist() for row, (_, out) in zip(made, group, strict=True)]

    def sequential(self, work: Requests) -> list[list[int]]:
        return [self.generate([one])[0] for one in work]

    def static(self, work: Requests, size: int) -> list[list[int]]:
        return [out for start in range(0, len(work), size) for out in self.generate(work[start : start + size])]


def ours(llm: LLM, work: Requests) -> list[list[int]]:
    params = [SamplingParams(temperature=0, max_tokens=out, ignore_eos=True, detokenize=False) for _, out in work]
    results = llm.generate([{"prompt_token_ids": prompt} for prompt, _ in work], params, use_tqdm=False)
    return [result.outputs[0].token_ids for result in results]


@dataclass(slots=True)
class Spent:
    """Seconds on the wall and of all cores together, a value a round."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def time(self, run: Callable[[], list[list[int]]]) -> list[list[int]]:
        wall, cpu = time.perf_counter(), time.process_time()
        outputs = run()
        self.wall_s.append(round(time.perf_counter() - wall, 3))
        self.cpu_s.append(round(time.process_time() - cpu, 3))
        return outputs


def random_model(directory: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("qwen3", **QWEN3_SHAPE)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


def machine() -> dict[str, str | int]:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": len(names), "system": platform.platform()}


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def measure(args: argparse.Namespace, model: Path) -> tuple[dict[str, Spent], float]:
    """What each engine took, and the seconds that ours needed to start with torch imported already."""
    reference = Transformers(model, getattr(torch, args.dtype))
    vocab_size = reference.model.config.vocab_size
    began = time.perf_counter()
    llm = LLM(
        model, dtype=args.dtype, device="cpu", skip_tokenizer_init=True, max_num_seqs=args.requests, max_model_len=1024
    )
    start_s = time.perf_counter() - began
    warm = requests(vocab_size, 4, 4 * args.divisor, rep=99)
    reference.sequential(warm[:2])
    reference.static(warm, 4)
    ours(llm, warm)
    runs: dict[str, Callable[[Requests], list[list[int]]]] = {"quire": lambda work: ours(llm, work)}
    for size in STATIC_SIZES:
        runs[f"transformers static {size}"] = lambda work, size=size: reference.static(work, size)  # type: ignore[misc]
    if not args.skip_sequential:
        runs["transformers sequential"] = reference.sequential
    spent = {name: Spent() for name in runs}
    for rep in range(args.rounds):
        work = requests(vocab_size, args.requests, args.divisor, rep)
        outputs = {name: spent[name].time(lambda: run(work)) for name, run in runs.items()}  # noqa: B023
        console.print(f"round {rep + 1}:", {name: round(times.wall_s[-1], 2) for name, times in spent.items()})
        if not args.skip_sequential:
            pairs = zip(outputs["quire"], outputs["transformers sequential"], strict=True)
            equal = sum(mine == theirs for mine, theirs in pairs)
            console.print(f"{equal} of {len(work)} outputs are token-equal to Transformers' sequential ones")
    return spent, start_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--divisor", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--skip-sequential", action="store_true")
    parser.add_argument("--output", type=Path, help="default: bench/results/cpu-<date>.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        is_demo = (args.model / "config.json").exists()
        model = args.model if is_demo else random_model(Path(scratch))
        spent, start_s = measure(args, model)
    report(args, spent, start_s, "quire-tiny" if is_demo else "random, Qwen3 shape")


def report(args: argparse.Namespace, spent: dict[str, Spent], start_s: float, model: str) -> None:
    work = requests(2**31, args.requests, args.divisor, 0)
    tokens = sum(out for _, out in work)
    medians = {name: statistics.median(times.wall_s) for name, times in spent.items()}
    best_static = min((name for name in medians if "static" in name), key=medians.__getitem__)
    table = Table(title=f"{model}, {args.dtype}, {args.threads} threads: {len(work)} requests, {tokens} output tokens")
    for heading in ("", "seconds (median)", "CPU seconds", "output tokens/s", "quire is"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, seconds in medians.items():
        ratio = "" if name == "quire" else f"{seconds / medians['quire']:.2f} x"
        cpu = statistics.median(spent[name].cpu_s)
        table.add_row(name, f"{seconds:.2f}", f"{cpu:.2f}", f"{tokens / seconds:,.0f}", ratio)
    console.print(table)
    now = datetime.now(UTC)
    output = args.output or ROOT / "bench" / "results" / f"cpu-{now:%Y-%m-%d}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "date": now.isoformat(timespec="seconds"),
        "command": " ".join(["bench/cpu.py", *sys.argv[1:]]),
        "commit": commit(),
        "model": model,
        "dtype": args.dtype,
        "threads": args.threads,
        "requests": len(work),
        "prompt_tokens": sum(len(prompt) for prompt, _ in work),
        "output_tokens": tokens,
        "seconds": {name: asdict(times) for name, times in spent.items()},
        "start_s": round(start_s, 3),
        "ratio_static": round(medians[best_static] / medians["quire"], 3),
        "best_static": best_static,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": machine(),
    }
    if "transformers sequential" in medians:
        result["ratio_sequential"] = round(medians["transformers sequential"] / medians["quire"], 3)
    output.write_text(json.dumps(result, indent=2) + "\n")
    ratios = f"{result.get('ratio_sequential', '-')} x sequential, {result['ratio_static']} x static"
    console.print(f"ratios: {ratios}; start {start_s:.2f} s")
    console.print(f"written to {output.relative_to(ROOT) if output.is_relative_to(ROOT) else output}")


if __name__ == "__main__":
    main()
