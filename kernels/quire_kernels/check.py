"""Every Triton kernel beside its torch reference, over a matrix of shapes.

    python -m quire_kernels.check                 on the GPU, the full matrix
    python -m quire_kernels.check --device cpu    in Triton's interpreter, small shapes; no GPU needed

One line a case; exit code 1 if any differs. `--json FILE` writes the results, `--only TEXT` picks cases by name,
`--part 2/8` the second of eight parts: the references are computed on the CPU, so several processes end sooner.
"""

import argparse
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quire_kernels import activation, check_attention, check_invariant, check_step, logprobs, norm, rope
from quire_kernels.check_attention import Mismatch, expect_close

Run = Callable[[torch.device], float]
"""Raises Mismatch, or returns the largest error seen."""

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    run: Run


def cases(full: bool) -> list[Case]:
    """The matrix: small enough for the interpreter, or the full one for a GPU."""
    parts = [_norms(full), _activations(full), _ropes(full), _logprobs(full), _samples(full)]
    found = [case for part in parts for case in part]
    found.extend(Case(name, run) for name, run in check_step.cases(full))
    found.extend(Case(name, run) for name, run in check_attention.cases(full))
    found.extend(Case(name, run) for name, run in check_invariant.cases(full))
    return found


def _dtypes(full: bool) -> list[torch.dtype]:
    return [torch.float32, torch.bfloat16, torch.float16] if full else [torch.float32, torch.bfloat16]


def _randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _norms(full: bool) -> Iterator[Case]:
    widths = [64, 256, 896, 1024, 1536, 2880, 4096, 5120, 8192, 16384] if full else [64, 96, 1536]
    for dtype in _dtypes(full):
        for width in widths:
            for tokens in [1, 77, 1024] if full else [1, 5]:
                shape = f"{tokens}x{width} {NAMES[dtype]}"
                yield Case(f"rms_norm {shape}", partial(_run_norm, tokens, width, dtype))
                yield Case(f"add_rms_norm {shape}", partial(_run_add_norm, tokens, width, dtype))


def _run_norm(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> float:
    from quire_kernels import norm_triton

    x, weight = _randn(tokens, 2 * width, dtype=dtype)[:, width:], _randn(width, dtype=dtype, seed=1)
    actual = norm_triton.rms_norm(x.to(device), weight.to(device), 1e-5)
    return expect_close(actual, norm.rms_norm_reference(x, weight, 1e-5))


def _run_add_norm(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> float:
    from quire_kernels import norm_triton

    x, residual, weight = (_randn(tokens, width, dtype=dtype, seed=seed) for seed in range(3))
    weight = weight[0].clone()
    own_x, own_residual = x.to(device, copy=True), residual.to(device, copy=True)
    norm_triton.add_rms_norm(own_x, own_residual, weight.to(device), 1e-5)
    norm.add_rms_norm_reference(x, residual, weight, 1e-5)
    return max(expect_close(own_residual, residual), expect_close(own_x, x))


def _activations(full: bool) -> Iterator[Case]:
    for dtype in _dtypes(full):
        for tokens, width in [(1, 768), (64, 11008), (1000, 4864)] if full else [(3, 100), (2, 1500)]:
            yield Case(f"silu_and_mul {tokens}x{width} {NAMES[dtype]}", partial(_run_silu, tokens, width, dtype))


def _run_silu(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> float:
    from quire_kernels import activation_triton

    x = 4 * _randn(tokens, 2 * width, dtype=dtype)
    return expect_close(activation_triton.silu_and_mul(x.to(device)), activation.silu_and_mul_reference(x))


def _ropes(full: bool) -> Iterator[Case]:
    shapes = [(4, 2, 64, 64), (7, 1, 32, 32), (2, 2, 96, 72), (8, 4, 80, 80)]
    if full:
        shapes += [(32, 8, 128, 128), (14, 2, 64, 64), (32, 32, 96, 96), (24, 8, 128, 96), (8, 1, 256, 256)]
    for dtype in _dtypes(full):
        for heads, kv_heads, dim, rotary in shapes:
            for has_norm in (False, True):
                name = f"rope_and_store {heads}/{kv_heads}x{dim} turns {rotary} {'normed ' if has_norm else ''}"
                yield Case(
                    f"{name}{NAMES[dtype]}",
                    partial(_run_rope, 333 if full else 5, heads, kv_heads, dim, rotary, has_norm, dtype),
                )


def _run_rope(
    tokens: int,
    heads: int,
    kv_heads: int,
    dim: int,
    rotary: int,
    has_norm: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    from quire_kernels import rope_triton

    generator = torch.Generator().manual_seed(0)
    blocks = -(-tokens // 16) + 2
    fused = _randn(tokens, heads + 2 * kv_heads, dim, dtype=dtype)
    positions = torch.randint(0, 4000, (tokens,), generator=generator)
    slots = torch.randperm((blocks - 1) * 16, generator=generator)[:tokens] + 16
    angles = torch.arange(4000)[:, None] * 10000.0 ** -(torch.arange(0, rotary, 2) / rotary)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    norms = [_randn(dim, dtype=dtype, seed=seed) for seed in (1, 2)] if has_norm else [None, None]
    caches = [_randn(blocks, kv_heads, 16, dim, dtype=dtype, seed=seed) for seed in (3, 4)]
    worst = []

    def apply(store: Callable[..., None], where: torch.device) -> list[Tensor]:
        qkv, keys, values = (x.to(where, copy=True) for x in (fused, *caches))
        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        on_device = (None if weight is None else weight.to(where) for weight in norms)
        store(q, k, v, positions.to(where), cos_sin.to(where), keys, values, slots.to(where), *on_device, 1e-6)
        return [qkv, keys, values]

    for actual, expected in zip(
        apply(rope_triton.rope_and_store, device),
        apply(rope.rope_and_store_reference, torch.device("cpu")),
        strict=True,
    ):
        worst.append(expect_close(actual, expected))
    return max(worst)


def _logprobs(full: bool) -> Iterator[Case]:
    for dtype in _dtypes(full):
        for rows, vocab in [(1, 151936), (33, 32000), (256, 128256)] if full else [(3, 1000), (2, 5000)]:
            yield Case(f"logprobs {rows}x{vocab} {NAMES[dtype]}", partial(_run_logprobs, rows, vocab, dtype))


def _run_logprobs(rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> float:
    from quire_kernels import logprobs_triton

    logits = 5 * _randn(rows, vocab, dtype=dtype)
    logits[:, 3] = -torch.inf
    own = logits.gather(1, torch.arange(rows).unsqueeze(1) * 7 % vocab)
    normaliser, ranks = logprobs_triton.normaliser_and_rank(logits.to(device), own.to(device))
    expected, expected_ranks = logprobs.normaliser_and_rank_reference(logits, own)
    if not torch.equal(ranks.cpu(), expected_ranks):
        raise Mismatch(f"ranks {ranks.tolist()} instead of {expected_ranks.tolist()}")
    return expect_close(normaliser, expected, 1e-4)


def _samples(full: bool) -> Iterator[Case]:
    shapes = [(1, 32000), (7, 151936), (64, 50257), (256, 32000)] if full else [(12, 3000)]
    for rows, vocab in shapes:
        for scale in (1.0, 8.0):
            for any_filter in (False, True):
                kind = "filters" if any_filter else "plain"
                run = partial(_run_sample, rows, vocab, scale, any_filter)
                yield Case(f"sample {rows}x{vocab} spread {scale:g} {kind}", run)
    yield Case("sample from NaN gives a token of the vocabulary", _run_sample_nan)


def _run_sample_nan(device: torch.device) -> float:
    from quire_kernels import sampling_triton

    logits = torch.full((2, 3000), torch.nan, device=device)
    ones, whole = torch.ones(2, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    tokens = sampling_triton.sample(logits, ones, whole.int(), ones, 0 * ones, whole, whole, whole.int(), True)
    if not bool(((tokens >= 0) & (tokens < 3000)).all()):
        raise Mismatch(f"tokens {tokens.tolist()} of a vocabulary of 3000")
    return 0.0


def _run_sample(rows: int, vocab: int, scale: float, any_filter: bool, device: torch.device) -> float:
    from quire_kernels import sampling_triton
    from quire_kernels.noise import gumbel
    from quire_kernels.sampling import sample_reference

    turn = torch.arange(rows)
    logits = scale * _randn(rows, vocab)
    temperature = torch.tensor([1.0, 0.0, 0.7, 1.5]).repeat(rows)[:rows]
    top_k = torch.tensor([0, 5, 50, 0, -1, 1, vocab, 1000], dtype=torch.int32).repeat(rows)[:rows]
    top_p = torch.tensor([1.0, 0.9, 0.5, 0.95, 0.01]).repeat(rows)[:rows]
    min_p = torch.tensor([0.0, 0.0, 0.05]).repeat(rows)[:rows]
    seeds = turn * 0x1234567890ABCD - 2**40
    arguments = (logits, temperature, top_k, top_p, min_p, seeds, 1000 + 3 * turn, (turn % 4).int())
    expected = sample_reference(*arguments, any_filter)
    actual = sampling_triton.sample(*(x.to(device) for x in arguments), any_filter).cpu()
    if actual.dtype != torch.int32 or actual.shape != (rows,):
        raise Mismatch(f"{actual.dtype} {tuple(actual.shape)} instead of int32 {(rows,)}")
    # Only scores that differ by rounding may trade places.
    heat = torch.where(temperature > 0, temperature, 1.0)
    noise = gumbel(seeds, 1000 + 3 * turn, (turn % 4).int(), vocab) * (temperature > 0).unsqueeze(1)
    scores = logits / heat.unsqueeze(1) + noise
    reached = scores.gather(1, actual.long().unsqueeze(1)) - scores.gather(1, expected.long().unsqueeze(1))
    if reached.abs().max() > 1e-4:
        rows_off = (reached.abs().squeeze(1) > 1e-4).nonzero().squeeze(1).tolist()
        raise Mismatch(f"rows {rows_off}: tokens {actual[rows_off].tolist()}, not {expected[rows_off].tolist()}")
    return float(reached.abs().max())


def run(chosen: list[Case], device: torch.device) -> list[dict[str, object]]:
    """Run the cases, printing one line each; a case that fails or breaks does not stop the rest."""
    results: list[dict[str, object]] = []
    for case in chosen:
        start = time.perf_counter()
        error, problem = None, None
        try:
            error = case.run(device)
            if device.type == "cuda":
                torch.cuda.synchronize()
        except Mismatch as mismatch:
            problem = str(mismatch)
        except Exception as exception:
            problem = "".join(traceback.format_exception(exception)[-6:])
        results.append({"name": case.name, "error": error, "problem": problem})
        verdict = f"error {error:.1e}" if problem is None else problem
        took = time.perf_counter() - start
        print(f"{'ok  ' if problem is None else 'FAIL'} {took:7.2f} s  {case.name}: {verdict}", flush=True)
    failures = sum(result["problem"] is not None for result in results)
    print(f"{len(results) - failures} of {len(results)} equal their reference")
    return results


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; write I/N with I from 1 to N, as 2/8")
    return int(found[1]), int(found[2])


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare every Triton kernel with its torch reference.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", default="", help="run the cases whose name holds this text")
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="I/N", help="run every N-th case, from the I-th")
    parser.add_argument("--small", action="store_true", help="the interpreter's matrix on a GPU")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print("No CUDA device here. Use --device cpu for Triton's interpreter.", file=sys.stderr)
        return 2
    chosen = [case for case in cases(options.device == "cuda" and not options.small) if options.only in case.name]
    first, step = options.part
    chosen = chosen[first - 1 :: step]
    results = run(chosen, torch.device(options.device))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file)
    return 1 if any(result["problem"] is not None for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
