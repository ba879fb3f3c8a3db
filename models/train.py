"""Trains quire-tiny from scratch on the text of `models.world` and writes it as a Hugging Face directory.

    python -m models.train --out models/quire-tiny

The text, the tokenizer and the first weights follow from `--seed`. Dev questions decide whether a second round of
training is needed; the 200 held-out questions are only looked at by `models.evaluate`.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from models.conversations import CHAT_TEMPLATE, END_OF_TEXT, SYSTEM_PROMPT, TURN_END, TURN_START
from models.corpus import ROW_LENGTHS, Rows, train_tokenizer
from models.evaluate import evaluate, transformers_answers
from models.world import held_out

CONTEXT = 2048
DEMO_QUESTIONS = (
    "What is a paged KV cache?",
    "Why do I need the prefix cache?",
    "What is a pod?",
    "How do I run Quire without a cluster?",
    "What is 47 + 38?",
    "Count from 1 to 20.",
)


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on besides this repository and the versions of torch and tokenizers."""

    seed: int
    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    documents: int
    steps: int
    tokens_per_step: int
    learning_rate: float
    max_seconds: float
    max_rounds: int
    target: float


def new_model(recipe: Recipe, tokenizer: Tokenizer) -> Qwen3ForCausalLM:
    torch.manual_seed(recipe.seed)
    end, stop = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(TURN_END)
    config = Qwen3Config(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.hidden // 32,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=stop,
        pad_token_id=end,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[stop, end], pad_token_id=end, do_sample=True, temperature=0.1
    )
    return model


def train_round(model: Qwen3ForCausalLM, rows: Rows, recipe: Recipe, round_: int, device: str) -> int:
    """One cosine schedule over `steps` steps or `max_seconds`, whichever ends first. Returns the steps done."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    peak = recipe.learning_rate * (0.4 if round_ else 1.0)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.95),
        fused=device == "cuda",
    )
    generator = torch.Generator().manual_seed(recipe.seed + round_)
    model.train()
    start = time.monotonic()
    step, progress = 0, 0.0
    while progress < 1.0:
        progress = max(step / recipe.steps, (time.monotonic() - start) / recipe.max_seconds)
        warmup = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = peak * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
        length = ROW_LENGTHS[step % len(ROW_LENGTHS)]
        ids, learned = rows.batch(length, max(1, recipe.tokens_per_step // length), generator)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            wanted = learned[:, 1:]
            loss = F.cross_entropy(model.lm_head(hidden[wanted]).float(), ids[:, 1:][wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0 or step in (1, 10):
            print(f"round {round_} step {step} loss {loss.item():.4f} {time.monotonic() - start:.0f} s", flush=True)
    return step


def save(model: Qwen3ForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """The Hugging Face directory: bf16 weights, config, tokenizer, chat template, the demo's questions."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().to("cpu", torch.bfloat16) for name, tensor in model.state_dict().items()}
    saved = Qwen3ForCausalLM(model.config).to(torch.bfloat16)
    saved.load_state_dict(state)
    saved.generation_config = model.generation_config
    saved.save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "additional_special_tokens": [TURN_START, TURN_END],
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT,
        },
    )
    _write_json(out / "demo.json", {"model": "quire-tiny", "system": SYSTEM_PROMPT, "questions": list(DEMO_QUESTIONS)})


def main() -> None:
    args = _arguments()
    out = Path(args.pop("out"))
    recipe = Recipe(**args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.monotonic()
    tokenizer = train_tokenizer(recipe.seed, recipe.vocabulary, min(recipe.documents, 30_000))
    model = new_model(recipe, tokenizer).to(device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {device}", flush=True)
    steps, dev = [], 0.0
    for round_ in range(recipe.max_rounds):
        rows = Rows(tokenizer, recipe.seed + 1000 * round_, recipe.documents, device)
        print(f"{rows.tokens / 1e6:.1f} M tokens of text after {time.monotonic() - start:.0f} s", flush=True)
        steps.append(train_round(model, rows, recipe, round_, device))
        save(model, tokenizer, out)
        batch = 200 if device == "cuda" else 25
        report = evaluate(held_out("dev"), partial(transformers_answers, out, device=device, batch=batch))
        dev = report.right
        print(f"dev: {report}", flush=True)
        if dev >= recipe.target:
            break
    record = {
        "recipe": asdict(recipe),
        "steps_per_round": steps,
        "dev_right": dev,
        "seconds": round(time.monotonic() - start),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    _write_json(out / "training.json", record)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _arguments() -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="models/quire-tiny", help="directory to write")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--vocabulary", type=int, default=1536)
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 64; heads have 32 dimensions")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--intermediate", type=int, default=640)
    parser.add_argument("--documents", type=int, default=300_000)
    parser.add_argument("--steps", type=int, default=2900, help="optimizer steps per round")
    parser.add_argument("--tokens-per-step", type=int, default=65_536)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--max-seconds", type=float, default=1e9, help="shortens the schedule of a round to this time")
    parser.add_argument("--max-rounds", type=int, default=2)
    parser.add_argument("--target", type=float, default=0.99, help="share of dev questions that makes a round the last")
    return vars(parser.parse_args())


if __name__ == "__main__":
    main()
