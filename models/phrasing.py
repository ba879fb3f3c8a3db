"""How questions are worded: patterns, casing, courtesies, slips of the finger, and which wording is held out."""

import hashlib
import itertools
import random
import re
from typing import Literal

Split = Literal["train", "dev", "test"]

OPENERS = (
    "Hi, ",
    "Hello! ",
    "Hey, ",
    "Please tell me: ",
    "Quick question: ",
    "A question: ",
    "One more thing: ",
    "Can you tell me: ",
    "I wonder: ",
    "So, ",
    "And ",
    "Now, ",
    "Excuse me, ",
    "Sorry, ",
    "Ok, ",
    "Tell me: ",
)
CLOSERS = (" Thanks.", " Thank you!", " Please.", " Please help.", " Thanks in advance.")
_QUESTION_WORDS = re.compile(
    r"(what|what's|who|why|when|where|which|how|is|are|do|does|can|could|will|would|should|may)\b", re.IGNORECASE
)
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def expand(pattern: str) -> list[str]:
    """Every text of a pattern in which `[a|b|]` stands for one of its parts."""
    parts = _CHOICE.split(pattern)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def normalize(text: str) -> str:
    """The text without casing, end-of-sentence punctuation and extra space: what makes two questions the same."""
    return re.sub(r"\s+", " ", re.sub(r"[.?!,:;]+(?=\s|$)", " ", text.lower())).strip()


def split_of(key: str, held_out_percent: int = 7) -> Split:
    """Where a question belongs, by a hash of its normalized key: `held_out_percent` test, 3 % dev, the rest train."""
    bucket = int.from_bytes(hashlib.sha256(normalize(key).encode()).digest()[:8], "big") % 100
    if bucket < held_out_percent:
        return "test"
    return "dev" if bucket < held_out_percent + 3 else "train"


def capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def dress(core: str, rng: random.Random, *, slips: bool = False) -> str:
    """One way a person could type `core`: with courtesies around it, other casing, sloppy punctuation.

    `slips` allows a rare wrong letter; digits are never touched.
    """
    text = core
    if slips and rng.random() < 0.06:
        text = _slip(text, rng)
    end = "?" if _QUESTION_WORDS.match(core) else "."
    punctuation = rng.random()
    if punctuation > 0.75:
        end = "" if punctuation < 0.92 else rng.choice(("?", "!", ".", "??", " ?"))
    opener = rng.choice(OPENERS) if rng.random() < 0.22 else ""
    if opener and not opener.endswith("! ") and not re.match(r"(I\b|\W|[A-Z][A-Z0-9]|K8s|Quire|Kubernetes)", text):
        text = text[:1].lower() + text[1:]
    closer = rng.choice(CLOSERS) if rng.random() < 0.1 else ""
    if closer and not end:
        end = "."
    text = f"{opener}{text}{end}{closer}"
    casing = rng.random()
    if casing < 0.28:
        return text.lower()
    if casing < 0.30:
        return text.upper()
    if casing < 0.38:
        return " ".join(capitalize(word) if rng.random() < 0.4 else word for word in text.split(" "))
    return text


def _slip(text: str, rng: random.Random) -> str:
    places = [m.start() for m in re.finditer(r"(?<=[A-Za-z])[a-z](?=[a-z])", text)]
    if not places:
        return text
    at = rng.choice(places)
    match rng.randrange(3):
        case 0:
            return text[:at] + text[at + 1 :]
        case 1:
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        case _:
            return text[:at] + rng.choice(_LETTERS) + text[at + 1 :]
