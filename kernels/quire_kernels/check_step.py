"""The cases of `quire_kernels.check` around a decode step: its inputs, one-row products, greedy draws."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from quire_kernels import greedy, inputs
from quire_kernels.check_attention import Mismatch, expect_close

Run = Callable[[torch.device], float]
POISONED = -2


def cases(full: bool) -> Iterator[tuple[str, Run]]:
    fp32, bf16, fp16 = torch.float32, torch.bfloat16, torch.float16
    dtypes = [fp32, bf16, fp16] if full else [fp32, bf16]
    for size in [1, 16, 64] if full else [4, 16]:
        for n in [1, 7, 256] if full else [1, 5]:
            yield f"decode_inputs {n} rows, blocks of {size}", partial(_run_inputs, n, 4096 if full else 60, size)
        for counts in ([1, 1, 5, 20], [1, 0], [3, 0, 0], [1] * 4, [300, 0]):
            yield f"mixed_inputs of {counts}, blocks of {size}", partial(_run_mixed_inputs, counts, size)
    shapes = [(1024, 4096), (4096, 1024), (151936, 1024), (6144, 4096), (96, 64), (100, 3072)] if full else [(20, 96)]
    for dtype in dtypes:
        for outputs, depth in [*shapes, (9, 1500)]:
            for has_bias in (False, True):
                name = f"one row times {outputs}x{depth}{' + bias' if has_bias else ''} {dtype}"
                yield name.replace("torch.", ""), partial(_run_one_row, outputs, depth, has_bias, dtype)
        for n, vocab in [(1, 151936), (7, 128256), (256, 32000), (3, 320)] if full else [(1, 320), (3, 9000)]:
            name = f"likeliest of {n}x{vocab} {dtype}"
            yield name.replace("torch.", ""), partial(_run_likeliest, n, vocab, dtype)
    # Triton's interpreter reads no bf16 through descriptors.
    for dtype in (bf16, fp16) if full else (fp16,):
        yield from _few_rows_cases(full, dtype)


def _few_rows_cases(full: bool, dtype: torch.dtype) -> Iterator[tuple[str, Run]]:
    shapes = [(6144, 4096), (28672, 4096), (128256, 4096), (1000, 1024), (6144, 1024)] if full else [(200, 256)]
    for outputs, depth in shapes:
        for tokens in [2, 16, 17, 32, 33, 64, 113, 128] if full else [3, 20]:
            for is_gated in (False, True):
                name = f"{tokens} rows times {outputs}x{depth}{' gated' if is_gated else ''} {dtype}"
                yield name.replace("torch.", ""), partial(_run_few_rows, tokens, outputs, depth, is_gated, dtype)


def _run_inputs(n: int, length: int, size: int, device: torch.device) -> float:
    from quire_kernels import inputs_triton

    generator = torch.Generator().manual_seed(n)
    columns = -(-length // size)
    tokens = torch.randint(0, 1000, (n + 3, length + 1), generator=generator, dtype=torch.int32)
    blocks = torch.randint(0, 5000, (n + 3, columns + 2), generator=generator, dtype=torch.int32)
    rows = torch.randperm(n + 3, generator=generator)[:n].int()
    contexts = torch.randint(0, length, (n,), generator=generator, dtype=torch.int32)
    new_blocks = torch.where(contexts % 3 == 0, 7000 + contexts, -1).int()
    on_device = blocks.to(device, copy=True)
    made = inputs_triton.decode_inputs(
        tokens.to(device), on_device, rows.to(device), contexts.to(device), new_blocks.to(device), columns, size
    )
    expected = inputs.decode_inputs_reference(tokens, blocks, rows, contexts, new_blocks, columns, size)
    held = torch.arange(columns) <= (contexts // size).unsqueeze(1)
    pairs = [*zip(made[:4], expected[:4], strict=True), (on_device, blocks)]
    pairs.append((made.block_tables.cpu()[held], expected.block_tables[held]))
    for number, (actual, wanted) in enumerate(pairs):
        if actual.dtype != wanted.dtype or not torch.equal(actual.cpu(), wanted):
            raise Mismatch(f"part {number}: {actual.tolist()} instead of {wanted.tolist()}"[:400])
    return 0.0


def _run_mixed_inputs(counts: list[int], size: int, device: torch.device) -> float:
    from quire_kernels import inputs_triton

    generator = torch.Generator().manual_seed(sum(counts))
    n, length = len(counts), 400
    columns = -(-length // size)
    tokens = torch.randint(0, 1000, (n + 3, length + 1), generator=generator, dtype=torch.int32)
    blocks = torch.randint(0, 5000, (n + 3, columns + 2), generator=generator, dtype=torch.int32)
    rows = torch.randperm(n + 3, generator=generator)[:n].int()
    contexts = torch.randint(0, length - 300, (n,), generator=generator, dtype=torch.int32)
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    total = int(starts[-1]) + 7
    arguments = (tokens, blocks, rows, contexts, starts)
    made = inputs_triton.mixed_inputs(*(x.to(device) for x in arguments), total, columns, size)
    expected = inputs.mixed_inputs_reference(*arguments, total, columns, size)
    held = torch.arange(columns) * size < expected.seq_lens.unsqueeze(1)
    for name, actual, wanted in zip(expected._fields, made, expected, strict=True):
        actual = actual.cpu()
        if name == "block_tables":
            actual, wanted = actual[held], wanted[held]
        if actual.dtype != wanted.dtype or not torch.equal(actual, wanted):
            raise Mismatch(f"{name}: {actual.tolist()} instead of {wanted.tolist()}"[:400])
    return 0.0


def _run_one_row(outputs: int, depth: int, has_bias: bool, dtype: torch.dtype, device: torch.device) -> float:
    """The plain product, and what may surround it."""
    from quire_kernels import linear_triton
    from quire_kernels.activation import silu_and_mul_reference
    from quire_kernels.norm import rms_norm_reference

    generator = torch.Generator().manual_seed(depth)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((1, depth), (outputs, depth), (outputs,)))
    norm, residual = torch.rand(depth, generator=generator) + 0.5, torch.randn(1, outputs, generator=generator)
    x, weight, bias, norm, residual = (
        tensor.to(device, dtype) for tensor in (x, weight * depth**-0.5, bias, norm, residual)
    )
    own = bias if has_bias else None

    def product(x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x.double(), weight.double(), bias.double() * has_bias).cpu()

    worst = expect_close(linear_triton.one_row(x, weight, own, None), product(x))
    normed = product(rms_norm_reference(x.double(), norm.double(), 1e-5))
    worst = max(worst, expect_close(linear_triton.one_row(x, weight, own, None, norm, 1e-5), normed))
    wanted = residual.double().cpu() + product(x)
    linear_triton.one_row(x, weight, own, residual, adds=True)
    worst = max(worst, expect_close(residual, wanted))
    if outputs % 2 == 0:
        actual = linear_triton.one_row(x, weight, own, None, norm, 1e-5, is_gated=True)
        worst = max(worst, expect_close(actual, silu_and_mul_reference(normed)))
    return worst


def _run_few_rows(
    tokens: int, outputs: int, depth: int, is_gated: bool, dtype: torch.dtype, device: torch.device
) -> float:
    """The tile for this shape, with and without a bias; 0 where cuBLAS is taken."""
    from quire_kernels import few_rows_triton
    from quire_kernels.activation import silu_and_mul_reference

    generator = torch.Generator().manual_seed(depth)
    x, weight, bias = (
        torch.randn(*shape, generator=generator) for shape in ((tokens, depth), (outputs, depth), (outputs,))
    )
    x, weight, bias = (tensor.to(device, dtype) for tensor in (x, weight * depth**-0.5, bias))
    tile = few_rows_triton.tile_for(tokens, outputs, depth, is_gated)
    worst = 0.0
    for own in (None, bias) if tile is not None else ():
        wanted = torch.nn.functional.linear(x.double(), weight.double(), None if own is None else own.double())
        if is_gated:
            wanted = silu_and_mul_reference(wanted)
        out = torch.full(wanted.shape, torch.nan, dtype=dtype, device=device)
        few_rows_triton.launch(x, weight, own, out, tile, is_gated)
        worst = max(worst, expect_close(out, wanted.cpu()))
    return worst


def _run_likeliest(n: int, vocab: int, dtype: torch.dtype, device: torch.device) -> float:
    from quire_kernels import greedy_triton

    generator = torch.Generator().manual_seed(n)
    logits = torch.randn(n, vocab, generator=generator).to(dtype)
    logits[n // 2, vocab // 2] = torch.inf
    if n > 2:
        logits[0, :] = -torch.inf
        logits[1, vocab - 1] = torch.nan
        # Of equal ones the first counts.
        logits[2, [5, vocab // 3, vocab - 1]] = 100.0
    rows, positions = torch.randperm(n).int(), torch.arange(n, dtype=torch.int32) + 1
    found = []
    for where in (torch.device("cpu"), device):
        out = torch.full((3, n + 2), -9, dtype=torch.int32, device=where)
        tokens = torch.full((n, n + 2), -9, dtype=torch.int32, device=where)
        turn = torch.full((1,), 1, dtype=torch.int32, device=where)
        arguments: list[Tensor] = [tensor.to(where) for tensor in (rows, positions)]
        draw = greedy.likeliest_reference if not found else greedy_triton.likeliest
        draw(logits.to(where), POISONED, out, turn, *arguments, tokens)
        found.append((out.cpu(), tokens.cpu()))
    (wanted, wanted_tokens), (actual, tokens) = found
    if not torch.equal(actual, wanted):
        raise Mismatch(f"{actual.tolist()} instead of {wanted.tolist()}"[:400])
    # What is recorded for a poisoned row is any token of the vocabulary.
    sound = wanted[1, :n] >= 0
    if not torch.equal(tokens[rows.long()][sound], wanted_tokens[rows.long()][sound]):
        raise Mismatch("recorded other tokens than were drawn, or elsewhere")
    return 0.0
