"""Engine-neutral workloads. Only the standard library is used, so any engine can consume them.

Every workload is a list of (prompt_token_ids, output_len). Each request must yield exactly
output_len tokens (ignore EOS), greedy. `rep` changes the token ids but never the lengths, so that
repeated runs cannot be answered from a prefix cache left by an earlier one.

    python workloads.py w1 --rep 0 > w1.jsonl     # {"prompt": [...], "out": n} a line
"""

import json
import random
import sys

TOKEN_MAX = 10000  # both models' vocabularies are larger


def _ids(rng, n):
    return [rng.randint(0, TOKEN_MAX) for _ in range(n)]


def nano_bench(num_seqs, rep=0, max_in=1024, max_out=1024):
    """The request list of nano-vllm's bench.py: seed 0, lengths uniform in 100..1024.
    rep 0 reproduces its ids and lengths draw by draw (256 requests: 133,966 output tokens)."""
    rng = random.Random(0)
    prompts = [_ids(rng, rng.randint(100, max_in)) for _ in range(num_seqs)]
    outs = [rng.randint(100, max_out) for _ in range(num_seqs)]
    if rep:
        r2 = random.Random(100000 + rep)
        prompts = [_ids(r2, len(p)) for p in prompts]
    return list(zip(prompts, outs, strict=True))


def w1(rep=0, n=256):
    return nano_bench(n, rep)


def w1b(rep=0):
    return nano_bench(1024, rep)


def uniform(batch, prompt_len, out_len, rep=0, tag=0):
    rng = random.Random(7_000_000 + 1000 * tag + rep)
    return [(_ids(rng, prompt_len), out_len) for _ in range(batch)]


def w2(rep=0, out=256):
    return uniform(1, 128, out, rep, tag=2)


def w3_single(rep=0):
    return uniform(1, 8192, 1, rep, tag=3)


def w3_batch(rep=0):
    return uniform(16, 2048, 1, rep, tag=4)


def w4(prefix_rep=0, suffix_rep=0, n=256, prefix=2048, unique=128, out=64):
    pre = _ids(random.Random(8_000_000 + prefix_rep), prefix)
    rng = random.Random(9_000_000 + 1000 * prefix_rep + suffix_rep)
    return [(pre + _ids(rng, unique), out) for _ in range(n)]


def w5(batch, rep=0, out=128):
    return uniform(batch, 512, out, rep, tag=500 + batch)


def long_single(rep=0):
    return uniform(1, 131_071, 1, rep, tag=6)


def long_batch(rep=0, out=129):
    return uniform(8, 32_768, out, rep, tag=8)


W5_BATCHES = (1, 8, 32, 64, 128, 256)

if __name__ == "__main__":
    name = sys.argv[1]
    rep = int(sys.argv[sys.argv.index("--rep") + 1]) if "--rep" in sys.argv else 0
    for p, o in {"w1": w1, "w1b": w1b, "w2": w2, "w3_single": w3_single, "w3_batch": w3_batch}[name](rep=rep):
        print(json.dumps({"prompt": p, "out": o}))
