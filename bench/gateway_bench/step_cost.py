"""How long one engine step takes: a model with five numbers, fitted to steps measured on an H200.

    seconds = max(weights_s + sequence_s x q, token_s x q) + context_s x c + pair_s x p

q: query tokens of the step. c: tokens whose K and V the decodes read. p: (query, key) pairs of the prefills' attention.
Up to a few hundred tokens a step reads the weights (the first term); beyond, it multiplies (the second).

    .venv/bin/python -m gateway_bench fit      # from bench/results/h200.jsonl to bench/results/step-cost.json
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parents[1] / "results"
MEASURED = RESULTS / "h200.jsonl"
FITTED = RESULTS / "step-cost.json"

_W5_PROMPT, _W5_OUTPUT = 512, 128
_W2_PROMPT, _W2_OUTPUT = 128, 256
_DECODE_FIT = (1, 8, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds, see above."""

    weights_s: float
    sequence_s: float
    token_s: float
    context_s: float
    pair_s: float

    def step_s(self, queries: int, context: int, pairs: float) -> float:
        linear = max(self.weights_s + self.sequence_s * queries, self.token_s * queries)
        return linear + self.context_s * context + self.pair_s * pairs

    def prefill_s(self, tokens: int, cached: int = 0) -> float:
        """One prompt alone in a step."""
        return self.step_s(tokens - cached, 0, pairs(cached, tokens - cached))


def pairs(context: int, queries: int) -> float:
    """(query, key) pairs of `queries` tokens behind `context` ones, each looking at all before it."""
    return queries * (context + queries / 2)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured step."""

    name: str
    seconds: float
    queries: int
    context: float
    pairs: float


def load(path: Path = FITTED) -> StepCost:
    """The committed fit."""
    return StepCost(**json.loads(path.read_text())["cost"])


def samples(rows: Sequence[dict[str, Any]]) -> list[Sample]:
    """The single steps that the rows of one model's runs tell, medians over repetitions."""
    found = []

    def median(workload: str, field: str) -> float | None:
        values = [row[field] for row in rows if row["workload"] == workload and field in row]
        return statistics.median(values) if values else None

    tpot = median("w2_summary", "tpot_ms")
    if tpot is not None:
        found.append(Sample("decode of 1 (w2)", tpot / 1e3, 1, _W2_PROMPT + _W2_OUTPUT / 2, 0.0))
    for batch in (8, 32, 64, 128, 256):
        step = median(f"w5_{batch}", "step_ms")
        if step is not None:
            context = batch * (_W5_PROMPT + _W5_OUTPUT / 2)
            found.append(Sample(f"decode of {batch} (w5)", step / 1e3, batch, context, 0.0))
    for workload, count, tokens in (("w3_8192x1", 1, 8192), ("w3_2048x16", 16, 2048)):
        wall = median(workload, "wall_s")
        if wall is not None:
            # 16 x 2,048 tokens are two steps of 16,384: half of it is one.
            steps = max(1, count * tokens // 16384)
            per_step = count // steps
            found.append(
                Sample(f"prompts {count} x {tokens}", wall / steps, per_step * tokens, 0, per_step * pairs(0, tokens))
            )
    for batch in (1, 8, 32):
        first = median(f"w5_{batch}", "first_s")
        if first is not None:
            queries = batch * _W5_PROMPT
            found.append(Sample(f"prompts {batch} x 512", first, queries, 0, batch * pairs(0, _W5_PROMPT)))
    return found


def fit(measured: Sequence[Sample]) -> StepCost:
    """Least squares of relative errors: decodes of up to 128 for what reads, prompts for what multiplies."""
    decodes = [each for each in measured if not each.pairs and each.queries in _DECODE_FIT]
    prompts = [each for each in measured if each.pairs]
    weights_s, sequence_s, context_s = _solve(decodes, lambda each: (1.0, each.queries, each.context))
    token_s, pair_s = _solve(prompts, lambda each: (each.queries, each.pairs))
    return StepCost(weights_s, sequence_s, token_s, context_s, pair_s)


def _solve(measured: Sequence[Sample], terms: Any) -> list[float]:
    """Coefficients >= 0: one that would be negative is left out, and the others solved anew."""
    matrix = np.array([[value / each.seconds for value in terms(each)] for each in measured])
    kept = list(range(matrix.shape[1]))
    while True:
        solved = np.linalg.lstsq(matrix[:, kept], np.ones(len(measured)), rcond=None)[0]
        if (solved >= 0).all():
            break
        del kept[int(solved.argmin())]
    found = [0.0] * matrix.shape[1]
    for index, value in zip(kept, solved.tolist(), strict=True):
        found[index] = value
    return found


def write(model: str = "m-8b", run: str = "") -> dict[str, Any]:
    """Fit the latest run of `model` that measured decodes of all sizes (or the one named `run`); with its errors."""
    rows = [json.loads(line) for line in MEASURED.read_text().splitlines()]
    rows = [row for row in rows if row["engine"] == "quire" and row["model"] == model]
    run = run or next(row["run"] for row in reversed(rows) if row["workload"] == "w5_256")
    rows = [row for row in rows if row["run"] == run]
    measured = samples(rows)
    cost = fit(measured)
    told = {
        "command": f"python -m gateway_bench fit --model {model} --run {run}",
        "machine": rows[0]["machine"],
        "cost": asdict(cost),
        "samples": [
            {
                "step": each.name,
                "measured_ms": round(each.seconds * 1e3, 3),
                "fitted_ms": round(cost.step_s(each.queries, int(each.context), each.pairs) * 1e3, 3),
            }
            for each in measured
        ],
    }
    FITTED.write_text(json.dumps(told, indent=1) + "\n")
    return told
