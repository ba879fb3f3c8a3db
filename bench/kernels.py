# ruff: noqa: B008, B023 (a lambda made in a loop runs before the loop goes on)
"""Each kernel on this GPU beside its bound: bytes over the memory's bandwidth, or operations over the matrix rate.

    python bench/kernels.py [--only decode] [--out FILE --run 2026-11-27-h200-1]

Every reading is the median of replays of a CUDA graph that holds many launches over different data, so that neither
launches nor the cache decide. TB/s counts each input and output once; `of copy` is its share of a copy's bytes a
second, read plus written, on the same card minutes before. A line a reading is appended to FILE.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu import origin

from quire_kernels.activation import silu_and_mul
from quire_kernels.attention import paged_attention
from quire_kernels.batch import AttentionBatch, SharedPrefix
from quire_kernels.greedy import likeliest
from quire_kernels.linear import skinny_linear
from quire_kernels.norm import add_rms_norm
from quire_kernels.rope import rope_and_store
from quire_kernels.sampling import sample

BF16 = torch.bfloat16
CUDA = torch.device("cuda")
# Query heads, KV heads, head dimension, hidden size, intermediate size, vocabulary.
MODELS = {"m-8b": (32, 8, 128, 4096, 14336, 128256), "m-small": (16, 8, 128, 1024, 3072, 151936)}
ARENA = 6 * 2**30
"""Bytes that rotating operands spread over, far more than the cache holds."""

Reading = dict[str, Any]


def microseconds(calls: list[Callable[[], object]], repeats: int = 9) -> float:
    """Median time of one call when all of them run one after another in a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    times = []
    for _ in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[2:]) / len(calls) * 1e3


def memory_reading(name: str, calls: list[Callable[[], object]], bytes_moved: float, **extra: Any) -> Reading:
    us = microseconds(calls)
    return {"kernel": name, "us": round(us, 2), "TB/s": round(bytes_moved / us / 1e6, 3), **extra}


def copy_tb_s() -> float:
    """Of 4 GiB, read plus written."""
    source = torch.empty(2**30, dtype=torch.int32, device=CUDA)
    target = torch.empty_like(source)
    return 2 * source.nbytes / microseconds([lambda: target.copy_(source)]) / 1e6


def beside(reading: Reading, copy: float) -> Reading:
    """With its share of the copy's TB/s, where it is one of bytes."""
    return {**reading, "of copy": round(reading["TB/s"] / copy, 3)} if "TB/s" in reading else reading


def batch_of(lengths: list[int], queries: list[int], blocks_in_cache: int, columns: int) -> AttentionBatch:
    """Sequences over random blocks of 16."""
    starts = [0]
    for count in queries:
        starts.append(starts[-1] + count)
    tables = torch.randint(1, blocks_in_cache, (len(lengths), columns), dtype=torch.int32, device=CUDA)
    positions = torch.cat([torch.arange(n - q, n, device=CUDA) for n, q in zip(lengths, queries, strict=True)])
    rows = torch.repeat_interleave(torch.tensor(queries, device=CUDA))
    return AttentionBatch(
        positions=positions,
        slots=tables[rows, positions // 16].long() * 16 + positions % 16,
        query_starts=torch.tensor(starts, dtype=torch.int32, device=CUDA),
        seq_lens=torch.tensor(lengths, dtype=torch.int32, device=CUDA),
        block_tables=tables,
        num_decodes=sum(count == 1 for count in queries),
        query_starts_cpu=starts,
        seq_lens_cpu=lengths,
        block_size=16,
    )


def decode_attention(model: str) -> Iterator[Reading]:
    heads, kv_heads, dim, *_ = MODELS[model]
    blocks = ARENA // (2 * 2 * kv_heads * 16 * dim) // 4
    caches = [torch.randn(2, blocks, kv_heads, 16, dim, device=CUDA).to(BF16) for _ in range(4)]
    generator = torch.Generator().manual_seed(0)
    mixes = {
        "1 x 300": [300],
        "1 x 4000": [4000],
        "8 x 600": [600] * 8,
        "32 x 600": [600] * 32,
        "256 x 576": [576] * 256,
        "256 mixed 100..2048": torch.randint(100, 2048, (256,), generator=generator).tolist(),
        "1 x 32000": [32000],
        "8 x 32000": [32000] * 8,
        "32 mixed 100..32000": torch.randint(100, 32000, (32,), generator=generator).tolist(),
    }
    for name, lengths in mixes.items():
        # The host assumes the longest sequence, as in a captured decode.
        columns = 257 if max(lengths) <= 4096 else 2049
        batch = batch_of(lengths, [1] * len(lengths), blocks, columns)
        batch = replace(batch, seq_lens_cpu=[16 * columns - 15] * len(lengths))
        q = torch.randn(len(lengths), heads, dim, device=CUDA).to(BF16)
        out = torch.empty_like(q)
        calls = [
            lambda k=k, v=v, q=q, batch=batch, out=out: paged_attention(q, k, v, batch, dim**-0.5, None, out)
            for k, v in caches * 2
        ]
        moved = 2 * 2 * sum(lengths) * kv_heads * dim
        yield memory_reading(f"decode attention {model} {name}", calls, moved)
    for n in (32, 256):
        batch = batch_of([2048 + 160] * n, [1] * n, blocks, 257)
        batch.block_tables[:, :128] = batch.block_tables[0, :128].clone()
        lens, owner = (
            torch.full((size,), value, dtype=torch.int32, device=CUDA) for size, value in ((n, 2048), (1, 0))
        )
        q = torch.randn(n, heads, dim, device=CUDA).to(BF16)
        readings = {}
        for shared in (None, SharedPrefix(lens, owner)):
            own = replace(batch, seq_lens_cpu=[4097] * n, shared=shared, step_work={})
            readings[shared is not None] = microseconds(
                [lambda k=k, v=v, q=q, own=own: paged_attention(q, k, v, own, dim**-0.5, None) for k, v in caches * 2]
            )
        yield {
            "kernel": f"decode attention {model} {n} x (2048 shared + 160)",
            "us": round(readings[True], 2),
            "not shared us": round(readings[False], 2),
        }


def prefill_attention(model: str) -> Iterator[Reading]:
    heads, kv_heads, dim, *_ = MODELS[model]
    blocks = 4096
    k_cache, v_cache = torch.randn(2, blocks, kv_heads, 16, dim, device=CUDA).to(BF16)
    shapes = {
        "1 x 8192": ([8192], [8192]),
        "4 x 2048": ([2048] * 4, [2048] * 4),
        "16 x 512": ([512] * 16, [512] * 16),
        "2048 after 6144": ([8192], [2048]),
    }
    for name, (lengths, queries) in shapes.items():
        batch = batch_of(lengths, queries, blocks, -(-max(lengths) // 16))
        q = torch.randn(sum(queries), heads, dim, device=CUDA).to(BF16)
        out = torch.empty_like(q)
        us = microseconds([lambda q=q, b=batch, o=out: paged_attention(q, k_cache, v_cache, b, 0.1, None, o)] * 4, 5)
        pairs = sum(n * (n + 1) // 2 - (n - m) * (n - m + 1) // 2 for n, m in zip(lengths, queries, strict=True))
        reading = {"kernel": f"prefill attention {model} {name}", "us": round(us, 1)}
        reading["TFLOP/s"] = round(4 * pairs * heads * dim / us / 1e6, 1)
        if lengths == queries and len(set(lengths)) == 1:
            shape = (len(lengths), lengths[0], heads + 2 * kv_heads, dim)
            fused = torch.randn(shape, device=CUDA).to(BF16).transpose(1, 2)
            own, keys, values = fused.split([heads, kv_heads, kv_heads], dim=1)
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
                us = microseconds(
                    [
                        lambda o=own, k=keys, v=values: F.scaled_dot_product_attention(
                            o, k, v, is_causal=True, enable_gqa=True
                        )
                    ]
                    * 4,
                    5,
                )
            reading["cudnn us"] = round(us, 1)
        yield reading


def products(model: str) -> Iterator[Reading]:
    heads, kv_heads, dim, hidden, inner, vocab = MODELS[model]
    matrices = {
        "qkv": ((heads + 2 * kv_heads) * dim, hidden),
        "o": (hidden, heads * dim),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
        "lm_head": (vocab, hidden),
    }
    for name, (outputs, inputs) in matrices.items():
        copies = max(2, min(64, ARENA // 3 // (2 * outputs * inputs)))
        weights = [(torch.randn(outputs, inputs, device=CUDA) / 64).to(BF16) for _ in range(copies)]
        for rows in (1, 2, 4, 8, 16):
            x = torch.randn(rows, inputs, device=CUDA).to(BF16)
            ours = [lambda w=w, x=x: skinny_linear(x, w) for w in weights]
            torch_us = microseconds([lambda w=w, x=x: F.linear(x, w) for w in weights])
            moved = 2 * (outputs * inputs + rows * (outputs + inputs))
            yield memory_reading(
                f"product {model} {name} rows {rows}", ours, moved, **{"cublas us": round(torch_us, 2)}
            )
        del weights


def elementwise(model: str) -> Iterator[Reading]:
    heads, kv_heads, dim, hidden, inner, _ = MODELS[model]
    for tokens in (1, 256, 8192):
        copies = max(2, min(32, ARENA // (tokens * inner * 4)))
        weight = torch.ones(hidden, device=CUDA, dtype=BF16)
        states = [torch.randn(2, tokens, hidden, device=CUDA).to(BF16) for _ in range(copies)]
        calls = [lambda s=s: add_rms_norm(s[0], s[1], weight, 1e-6) for s in states]
        yield memory_reading(f"add_rms_norm {model} {tokens}", calls, 8 * tokens * hidden)
        gates = [torch.randn(tokens, 2 * inner, device=CUDA).to(BF16) for _ in range(copies)]
        calls = [lambda g=g: silu_and_mul(g) for g in gates]
        yield memory_reading(f"silu_and_mul {model} {tokens}", calls, 6 * tokens * inner)
        del states, gates
        width = heads + 2 * kv_heads
        fused = [torch.randn(tokens, width, dim, device=CUDA).to(BF16) for _ in range(copies)]
        caches = torch.zeros(2, tokens // 16 + 2, kv_heads, 16, dim, device=CUDA, dtype=BF16)
        angles, positions = torch.randn(8192, dim, device=CUDA), torch.arange(tokens, device=CUDA)
        norm = torch.ones(dim, device=CUDA, dtype=BF16) if model == "m-small" else None
        calls = [
            lambda f=f: rope_and_store(
                *f.split([heads, kv_heads, kv_heads], dim=1), positions, angles, *caches, positions, norm, norm
            )
            for f in fused
        ]
        yield memory_reading(f"rope_and_store {model} {tokens}", calls, 2 * tokens * dim * (2 * heads + 5 * kv_heads))


def draws(model: str) -> Iterator[Reading]:
    vocab = MODELS[model][-1]
    for n in (1, 32, 256):
        logits = [torch.randn(n, vocab, device=CUDA).to(BF16) for _ in range(4)]
        out, turn = torch.empty(1, n, dtype=torch.int32, device=CUDA), torch.zeros(1, dtype=torch.int32, device=CUDA)
        calls = [lambda x=x: likeliest(x, -2, out, turn) for x in logits]
        yield memory_reading(f"likeliest {model} {n}", calls, 2 * n * vocab)
        ones, whole = torch.ones(n, device=CUDA), torch.full((n,), 50, dtype=torch.int32, device=CUDA)
        wide = torch.arange(n, device=CUDA)
        for name, is_filtered in (("noise", False), ("top_k 50, top_p 0.9", True)):
            calls = [
                lambda x=x.float(), f=is_filtered: sample(
                    x, ones, whole, ones * 0.9, ones * 0, wide, wide, whole, any_filter=f
                )
                for x in logits
            ]
            yield memory_reading(f"sample {model} {n} {name}", calls, 4 * n * vocab)


PARTS = {
    "decode": decode_attention,
    "prefill": prefill_attention,
    "products": products,
    "elementwise": elementwise,
    "draws": draws,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Kernels of this GPU beside their bounds.")
    parser.add_argument("--only", choices=list(PARTS), action="append")
    parser.add_argument("--model", choices=list(MODELS), action="append")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--run", default="", help="one id for everything measured on one machine in one go")
    options = parser.parse_args()
    base, copy = origin(options.run), copy_tb_s()
    torch.cuda.empty_cache()
    print(f"copy  TB/s {copy:.3f}", flush=True)
    for part in options.only or PARTS:
        for model in options.model or MODELS:
            for reading in PARTS[part](model):
                line = beside(reading, copy)
                print("  ".join(f"{key} {value}" for key, value in line.items()), flush=True)
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps({**base, **line}) + "\n")
            torch.cuda.empty_cache()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
