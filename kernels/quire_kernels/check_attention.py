"""The attention cases of `quire_kernels.check`, against a plain softmax in fp64."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.attention import paged_attention
from quire_kernels.batch import AttentionBatch, SharedPrefix

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Relative to max(1, |expected|): the dtype's rounding, with room for sums in another order."""


class Mismatch(Exception):
    """A kernel's result is not its reference's."""


def expect_close(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> float:
    """The largest error relative to max(1, |expected|).

    Raises:
        Mismatch: shapes or dtypes differ, or the error is above the tolerance of the dtype.
    """
    actual = actual.detach().cpu()
    if actual.shape != expected.shape:
        raise Mismatch(f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    limit = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    actual, expected = actual.double(), expected.double()
    difference = ((actual - expected).abs() / expected.abs().clamp_min(1)).nan_to_num(torch.inf)
    worst = float(difference.max()) if difference.numel() else 0.0
    if worst > limit:
        where = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
        raise Mismatch(f"error {worst:.2e} above {limit:.0e} at {where}; {(difference > limit).sum()} values off")
    return worst


def make_batch(
    spans: list[tuple[int, int]], block_size: int, device: torch.device, spare_columns: int = 2
) -> tuple[AttentionBatch, int]:
    """Sequences of (context, queries) tokens, single queries first, over shuffled blocks; and the number of blocks.

    Table entries behind a sequence's end name block 0, as the engine's do.
    """
    spans = sorted(spans, key=lambda span: span[1] != 1)
    lens = [context + queries for context, queries in spans]
    counts = [-(-length // block_size) for length in lens]
    order = (torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)) + 1).int()
    tables = torch.zeros(len(spans), max(counts) + spare_columns, dtype=torch.int32)
    for row, blocks in enumerate(order.split(counts)):
        tables[row, : len(blocks)] = blocks
    starts = [0, *itertools.accumulate(queries for _, queries in spans)]
    positions = torch.cat([torch.arange(context, context + queries) for context, queries in spans])
    rows = torch.repeat_interleave(torch.tensor([queries for _, queries in spans]))
    slots = tables[rows, positions // block_size].long() * block_size + positions % block_size
    batch = AttentionBatch(
        positions=positions.to(device),
        slots=slots.to(device),
        query_starts=torch.tensor(starts, dtype=torch.int32, device=device),
        seq_lens=torch.tensor(lens, dtype=torch.int32, device=device),
        block_tables=tables.to(device),
        num_decodes=sum(queries == 1 for _, queries in spans),
        query_starts_cpu=starts,
        seq_lens_cpu=lens,
        block_size=block_size,
    )
    return batch, sum(counts) + 1


WHOLE = {
    "long": [(900, 1), (0, 2500), (0, 2300), (0, 700), (100, 2300), *[(0, 2048)] * 3, (0, 2049), (3, 20)],
    "longest": [(0, 32768)],
}
AT_ONCE = 1024
"""Queries of plain_attention: with 32k keys and 8 heads their weights take 2 GiB."""


def plain_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """What attention means, sequence by sequence in fp64 on the tensors' device."""
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    group = q.shape[1] // k_cache.shape[1]
    for row, length in enumerate(batch.seq_lens_cpu):
        start, end = batch.query_starts_cpu[row : row + 2]
        blocks = batch.block_tables[row, : -(-length // batch.block_size)].long()
        keys, values = (
            cache[blocks].transpose(0, 1).flatten(1, 2)[:, :length].double().repeat_interleave(group, dim=0)
            for cache in (k_cache, v_cache)
        )
        j = torch.arange(length, device=q.device)
        for first in range(start, end, AT_ONCE):
            own = slice(first, min(first + AT_ONCE, end))
            scores = torch.einsum("qhd,hkd->hqk", q[own].double(), keys) * scale
            i = torch.arange(length - end + own.start, length - end + own.stop, device=q.device).unsqueeze(1)
            is_visible = (j <= i) & (j > i - (window or length + 1))
            weights = scores.masked_fill(~is_visible, -torch.inf).softmax(dim=-1)
            out[own] = torch.einsum("hqk,hkd->qhd", weights, values)
    return out


def tensors(
    batch: AttentionBatch, blocks: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """q as a view of a fused projection, and caches whose unused slots hold NaN."""
    generator = torch.Generator().manual_seed(1)
    tokens = batch.query_starts_cpu[-1]
    fused = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=generator)
    caches = torch.randn(2, blocks, kv_heads, batch.block_size, dim, generator=generator)
    used = torch.zeros(blocks, batch.block_size, dtype=torch.bool)
    for table, length in zip(batch.block_tables.cpu(), batch.seq_lens_cpu, strict=True):
        places = torch.arange(length)
        used[table[places // batch.block_size].long(), places % batch.block_size] = True
    caches.masked_fill_(~used[:, None, :, None], torch.nan)
    q = fused.to(device, dtype)[:, :heads]
    k_cache, v_cache = caches.to(device, dtype)
    return q, k_cache, v_cache


def cases(full: bool) -> Iterator[tuple[str, Callable[[torch.device], float]]]:
    # The interpreter's products know no bfloat16.
    fp32, bf16, fp16 = torch.float32, torch.bfloat16, torch.float16
    decodes = [(0, 1), (4, 1), (15, 1), (16, 1), (255, 1), (256, 1), (300, 1), (63, 1)]
    prefills = [(0, 2), (0, 33), (20, 7), (40, 70), (0, 16), (3, 130)]
    mixes = {"decode": decodes, "prefill": prefills, "mixed": decodes[2:5] + prefills[1:4]}
    if full:
        mixes["decode"] = decodes + [(1000 + 37 * i, 1) for i in range(40)] + [(9000, 1), (20000, 1)]
        mixes["prefill"] = [*prefills, (0, 1024), (777, 513), (5000, 300)]
        mixes["mixed"] = mixes["decode"][:20] + mixes["prefill"]
    heads = [(4, 4, 32), (4, 2, 64), (8, 2, 80), (7, 1, 64), (8, 1, 128), (3, 3, 96)]
    windows = [None, 24]
    if full:
        heads += [(32, 8, 128), (14, 2, 64), (32, 32, 96), (16, 8, 128), (12, 2, 128), (8, 1, 256), (4, 2, 16)]
        windows += [1, 300]
    for number, ((kind, spans), (q_heads, kv_heads, dim)) in enumerate(itertools.product(mixes.items(), heads)):
        dtypes = [fp32, bf16, fp16] if full else [fp32, fp32, fp16][number % 3 : number % 3 + 1]
        blocks = [16, 32, 64, 8] if full and kind == "mixed" else [[16, 64, 32, 8][number % 4]]
        for dtype, window, block_size in itertools.product(dtypes, windows, blocks):
            name = f"{kind} attention {q_heads}/{kv_heads}x{dim} window {window} blocks of {block_size} {dtype}"
            yield (
                name.replace("torch.", ""),
                partial(_run, spans, q_heads, kv_heads, dim, dtype, window, block_size),
            )
    long = [(4095, 1), (4096, 1), (8300, 1), (0, 1)]
    for window in (None, 5000):
        yield (
            f"decode attention of long sequences window {window}",
            partial(_run, long, 2, 1, 16, fp32, window, 16),
        )
    for block_size in (1, 4, 128, 256):
        for kind, spans in (("decode", decodes), ("mixed", [*decodes[2:7], (20, 7), (40, 70), (0, 33)])):
            for dtype in (fp32, bf16) if full else (fp32,):
                yield (
                    f"{kind} attention in blocks of {block_size} {dtype}".replace("torch.", ""),
                    partial(_run, spans, 4, 2, 32, dtype, None, block_size),
                )
    uneven = [(300, 1), *[(5 * i, 1) for i in range(17)], (700, 1), (0, 1), (0, 1), (64, 1)]
    for spans, window in itertools.product((uneven, uneven[2:4] * 9), (None, 100)):
        yield (
            f"balanced decode attention of {len(spans)} sequences window {window}",
            partial(_on_eight_processors, partial(_run, spans, 8, 2, 64, fp32, window, 16)),
        )
    yield "balanced decode attention where places hold no decode", _run_without_some
    yield "decode attention is the same alone as in a batch", partial(_run_alone, decodes)
    few = [(300, 1), (290, 1), (63, 1), (400, 1), (288, 1), (35, 1)]
    shared_by = [i for i in range(24) if i % 6 in (0, 1, 3, 4)]
    yield (
        "balanced decode attention of 24 sequences with 17 shared blocks",
        partial(_on_eight_processors, partial(_run_shared, few * 4, shared_by, 17, 8, 2, 64, fp32)),
    )
    for (q_heads, kv_heads, dim), dtype, blocks in [
        ((8, 2, 64), fp32, 17),
        ((7, 1, 80), fp16, 16),
        ((4, 4, 32), fp32, 2),
    ]:
        yield (
            f"decode attention {q_heads}/{kv_heads}x{dim} with {blocks} shared blocks {dtype}".replace("torch.", ""),
            partial(_run_shared, few, [0, 1, 3, 4], blocks, q_heads, kv_heads, dim, dtype),
        )
    if full:
        ends = {"decode": [(32767, 1), (32700, 1)], "chunk": [(32256, 512), (0, 8192)], "whole": [(0, 32768)]}
        for (name, spans), dtype, window in itertools.product(ends.items(), (bf16, fp16), (None, 5000)):
            yield (
                f"attention to 32k, {name} window {window} {dtype}".replace("torch.", ""),
                partial(_run, spans, 8, 2, 128, dtype, window, 16),
            )
        many = [(2060 + 37 * i % 700, 1) for i in range(90)]
        for q_heads, kv_heads, dim in [(32, 8, 128), (16, 8, 128), (14, 2, 64), (8, 1, 256), (24, 3, 96)]:
            for dtype, blocks in itertools.product((bf16, fp16), (128, 9)):
                name = f"decode attention {q_heads}/{kv_heads}x{dim} with {blocks} shared blocks {dtype}"
                yield (
                    name.replace("torch.", ""),
                    partial(_run_shared, many, list(range(3, 85)), blocks, q_heads, kv_heads, dim, dtype),
                )
    if full:
        yield "decode attention in a CUDA graph, replayed at other lengths", _run_graph
        for (name, spans), dtype, dim in itertools.product(WHOLE.items(), (bf16, fp16), (64, 128)):
            yield (
                f"attention of whole {name} prompts x{dim} {dtype}".replace("torch.", ""),
                partial(_run_fresh, spans, dim, dtype),
            )


def _run(
    spans: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    window: int | None,
    block_size: int,
    device: torch.device,
) -> float:
    batch, blocks = make_batch(spans, block_size, device)
    q, k_cache, v_cache = tensors(batch, blocks, heads, kv_heads, dim, dtype, device)
    out = torch.full(q.shape, torch.nan, dtype=dtype, device=device)
    _attend(q, k_cache, v_cache, batch, dim**-0.5, window, out)
    return expect_close(out, plain_attention(q, k_cache, v_cache, batch, dim**-0.5, window).cpu())


def _run_without_some(device: torch.device) -> float:
    """The decodes of a mixed batch leave places free: nothing of theirs is read or written, even if all are free."""
    batch, blocks = make_batch([(40 * i, 1) for i in range(20)], 16, device)
    q, k_cache, v_cache = tensors(batch, blocks, 8, 2, 64, torch.float32, device)
    expected = plain_attention(q, k_cache, v_cache, batch, 0.125, None).cpu()
    worst = 0.0
    for free in ([0, 1, 5, 6, 7, 19], list(range(20))):
        lens = batch.seq_lens.clone()
        lens[free] = 0
        out = torch.full(q.shape, 7.0, device=device)
        _attend(q, k_cache, v_cache, replace(batch, seq_lens=lens, step_work={}), 0.125, None, out)
        expected[free] = 7.0
        worst = max(worst, expect_close(out, expected))
    return worst


def _on_eight_processors(run: Callable[[torch.device], float], device: torch.device) -> float:
    """Where there is no GPU, as on one of eight processors: so that sequences are cut and merged there too."""
    if device.type != "cpu":
        return run(device)
    from unittest.mock import patch  # an engine imports this file at its start, and plays nothing

    with patch.object(tuning, "processors", lambda: 8):
        return run(device)


def _run_shared(
    spans: list[tuple[int, int]],
    members: list[int],
    count: int,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """The members' first `count` blocks are those of the second one."""
    batch, blocks = make_batch(spans, 16, device)
    batch.block_tables[members, :count] = batch.block_tables[members[1], :count].clone()
    lens = torch.zeros(len(spans), dtype=torch.int32, device=device)
    lens[members] = 16 * count
    owner = torch.tensor([members[1]], dtype=torch.int32, device=device)
    batch = replace(batch, shared=SharedPrefix(lens, owner))
    q, k_cache, v_cache = tensors(batch, blocks, heads, kv_heads, dim, dtype, device)
    out = torch.full(q.shape, torch.nan, dtype=dtype, device=device)
    _attend(q, k_cache, v_cache, batch, dim**-0.5, None, out)
    return expect_close(out, plain_attention(q, k_cache, v_cache, batch, dim**-0.5, None).cpu())


def _attend(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None, out: Tensor
) -> None:
    """The Triton kernels, on a CPU too."""
    from quire_kernels.decode_attention_triton import decode_attention
    from quire_kernels.prefill_attention_triton import prefill_attention

    if batch.num_decodes:
        decode_attention(q, k_cache, v_cache, batch, scale, window, out)
    if batch.num_decodes < len(batch.seq_lens_cpu):
        prefill_attention(q, k_cache, v_cache, batch, scale, window, out)


def _run_alone(spans: list[tuple[int, int]], device: torch.device) -> float:
    batch, blocks = make_batch(spans, 16, device)
    q, k_cache, v_cache = tensors(batch, blocks, 8, 2, 64, torch.float32, device)
    together = torch.empty(q.shape, device=device)
    _attend(q, k_cache, v_cache, batch, 0.125, None, together)
    for row, length in enumerate(batch.seq_lens_cpu):
        own, _ = make_batch([(length - 1, 1)], 16, device)
        own.block_tables[:, :] = batch.block_tables[row, : own.block_tables.shape[1]]
        alone = torch.empty(1, 8, 64, device=device)
        _attend(q[row : row + 1], k_cache, v_cache, own, 0.125, None, alone)
        if not torch.equal(alone[0], together[row]):
            raise Mismatch(f"row {row} of length {length} depends on its neighbours")
    return 0.0


def _run_fresh(spans: list[tuple[int, int]], dim: int, dtype: torch.dtype, device: torch.device) -> float:
    batch, blocks = make_batch(spans, 16, device)
    q, k_cache, v_cache = tensors(batch, blocks, 6, 2, dim, dtype, device)
    places = batch.slots // 16, slice(None), batch.slots % 16
    k, v = k_cache[places], v_cache[places]
    out = torch.full(q.shape, torch.nan, dtype=dtype, device=device)
    paged_attention(q, k_cache, v_cache, batch, dim**-0.5, None, out, k=k, v=v)
    return expect_close(out, plain_attention(q, k_cache, v_cache, batch, dim**-0.5, None).cpu())


def _run_graph(device: torch.device) -> float:
    width, capacity = 24, 4096
    longest, blocks = make_batch([(capacity - 1, 1)] * width, 16, device, spare_columns=0)
    q, k_cache, v_cache = tensors(longest, blocks, 16, 4, 128, torch.bfloat16, device)
    paged_attention(q, k_cache, v_cache, longest, 0.1, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = paged_attention(q, k_cache, v_cache, replace(longest, step_work={}), 0.1, None)
    worst = 0.0
    for seed in range(3):
        lens = torch.randint(1, capacity, (width,), generator=torch.Generator().manual_seed(seed)).int()
        longest.seq_lens.copy_(lens)
        graph.replay()
        longest.seq_lens_cpu[:] = lens.tolist()
        worst = max(worst, expect_close(out, plain_attention(q, k_cache, v_cache, longest, 0.1, None).cpu()))
    return worst
