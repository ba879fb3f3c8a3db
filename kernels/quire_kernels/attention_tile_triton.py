"""One tile of keys in an online softmax (FlashAttention-2, arXiv 2307.08691), over the paged cache.

Scores are in base 2: `scale` holds LOG2_E.
"""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def find_tile(number, query_starts, num_decodes, num_sequences, TOKENS: tl.constexpr):
    """The tile of that number among those of prefills, TOKENS query tokens each: its sequence, that one's first query
    token and number of query tokens, and the tile's first one among them. It may lie behind the last: an empty tile.

    A sequence s (counted from the first prefill) that starts at query token t (of the prefills) owns the tile numbers
    from t // TOKENS + s on: enough for its tokens, and known without a sum over the sequences before it.
    """
    origin = tl.load(query_starts + num_decodes)
    sequence = num_decodes
    beyond = num_sequences
    while beyond - sequence > 1:
        middle = (sequence + beyond) // 2
        if (tl.load(query_starts + middle) - origin) // TOKENS + middle - num_decodes <= number:
            sequence = middle
        else:
            beyond = middle
    start = tl.load(query_starts + sequence)
    queries = tl.load(query_starts + sequence + 1) - start
    return sequence, start, queries, (number - (start - origin) // TOKENS - (sequence - num_decodes)) * TOKENS


@triton.jit
def load_tile(
    first, end, table, k_cache, v_cache, cache_block, cache_slot,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, SIZE: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Positions first .. first + KEYS - 1 [KEYS], their keys and their values [KEYS, BLOCK_D]; zeros from `end` on.

    k_cache, v_cache point at the KV head. MASKED False promises that all positions come before `end`.
    """
    at = first + tl.arange(0, KEYS)
    dims = tl.arange(0, BLOCK_D)
    if MASKED:
        inside = at < end
        blocks = tl.load(table + at // SIZE, mask=inside, other=0).to(tl.int64)
    else:
        blocks = tl.load(table + at // SIZE).to(tl.int64)
    cells = (blocks * cache_block + (at % SIZE) * cache_slot)[:, None] + dims[None, :]
    if MASKED:
        held = inside[:, None] & (dims < DIM)[None, :]
        keys = tl.load(k_cache + cells, mask=held, other=0.0)
        values = tl.load(v_cache + cells, mask=held, other=0.0)
    elif DIM < BLOCK_D:
        keys = tl.load(k_cache + cells, mask=(dims < DIM)[None, :], other=0.0)
        values = tl.load(v_cache + cells, mask=(dims < DIM)[None, :], other=0.0)
    else:
        keys = tl.load(k_cache + cells)
        values = tl.load(v_cache + cells)
    return at, keys, values


@triton.jit
def attend_tile(
    queries, position, highest, total, acc, first, end, table, k_cache, v_cache, cache_block, cache_slot, scale, window,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, SIZE: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """Add keys first .. first + KEYS - 1 (those below `end`) to the rows' maximum, sum and weighted values.

    queries [ROWS, BLOCK_D] at `position` [ROWS]; highest, total [ROWS] and acc [ROWS, BLOCK_D] fp32; k_cache, v_cache
    point at the KV head. MASKED False promises that every row sees every key of the tile.
    """
    at, keys, values = load_tile(
        first, end, table, k_cache, v_cache, cache_block, cache_slot, DIM, BLOCK_D, SIZE, KEYS, MASKED
    )
    return attend_loaded(
        queries, keys, values, at, position, highest, total, acc, scale, window, MASKED, WINDOWED, IEEE
    )


@triton.jit
def attend_loaded(
    queries, keys, values, at, position, highest, total, acc, scale, window,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """The same for keys and values [KEYS, BLOCK_D] of the positions `at` [KEYS] that have been read already."""
    if IEEE:
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    else:
        scores = tl.dot(queries, tl.trans(keys)) * scale
    if MASKED:
        seen = at[None, :] <= position[:, None]
        if WINDOWED:
            seen = seen & (at[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
    above = tl.maximum(highest, tl.max(scores, axis=1))
    if MASKED:
        # A row may see nothing of this tile.
        base = tl.where(above == float("-inf"), 0.0, above)
    else:
        base = above
    weights = tl.exp2(scores - base[:, None])
    fade = tl.exp2(highest - base)
    acc = acc * fade[:, None]
    if IEEE:
        acc += tl.dot(weights, values, input_precision="ieee")
    else:
        acc += tl.dot(weights.to(values.dtype), values)
    return above, total * fade + tl.sum(weights, axis=1), acc


@triton.jit
def merge(highest, total, acc, weight, part):
    """Take in another part's result `part` [ROWS, BLOCK_D] whose sum of exponentials is 2 ** weight [ROWS] (-inf: it
    saw nothing)."""
    above = tl.maximum(highest, weight)
    base = tl.where(above == float("-inf"), 0.0, above)
    fade = tl.exp2(highest - base)
    share = tl.exp2(weight - base)
    return above, total * fade + share, acc * fade[:, None] + part * share[:, None]
