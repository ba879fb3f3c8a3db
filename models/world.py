"""The small world of quire-tiny: every question it should answer, in many wordings, with the one right answer.

Questions are drawn by a seeded generator. A question belongs to `train`, `dev` or `test` by a hash of its wording
(facts) or of its numbers (counting and sums), so the 200 held-out questions cannot appear in training in any casing.
"""

import random
import string
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from models import numbers
from models.phrasing import Split, capitalize, dress, expand, normalize, split_of

FACTS = Path(__file__).parent / "facts"
UNKNOWN = "I do not know that. I only know Quire, the basics of Kubernetes, counting and small sums."

WHAT_ONE = (
    "What is {x}",
    "What's {x}",
    "What exactly is {x}",
    "What is {x} in {place}",
    "[Explain|Please explain|Can you explain|Could you explain] {x}[| to me| in short| in simple words]",
    "[Tell me about|Tell me what you know about|What do you know about|What should I know about] {x}",
    "[Describe|Can you describe|Help me understand] {x}",
    "[What does|What does the word] {bare} mean",
    "[What is meant by|Define|Please define|What is the meaning of] {bare}",
    "[I want to know|I would like to know|Tell me|Do you know|I do not know|Can you tell me] what {x} is",
    "How would you [describe|explain] {x}",
    "[In short|In one sentence|Briefly], what is {x}",
    "[What is|What's|Explain|Tell me about] {bare}",
    "{bare}",
    "What does {bare} stand for",
    "[Give me|I need] a [short|quick|simple] explanation of {x}",
    "{x}",
)
WHAT_MANY = (
    "What are {x}",
    "What exactly are {x}",
    "What are {x} in {place}",
    "[Explain|Can you explain] {x}[| to me]",
    "[Tell me about|What do you know about|What should I know about|Help me understand] {x}",
    "[I want to know|Tell me|Do you know] what {x} are",
)
WHY_ONE = (
    "Why [do|would|should] [I|we|you] [use|need|want] {x}",
    "What is {x} [for|used for|good for]",
    "What is the [purpose|point|use|benefit|advantage|job] of {x}",
    "What [does {x} do|problem does {x} solve]",
    "[When|Why] [do|should|would] people use {x}",
    "What do [I|we] need {x} for",
    "How does {x} help[| me]",
    "Why is {x} [useful|important|needed|good]",
    "Why does {place} [have|use|need] {x}",
    "[Tell me|Explain|Do you know] why {x} [is useful|matters|is needed]",
    "What do I [get|gain] from {x}",
)
WHY_MANY = (
    "Why [do|would|should] [I|we] [use|need] {x}",
    "What are {x} [for|used for|good for]",
    "What is the [purpose|point|use] of {x}",
    "What [do {x} do|problem do {x} solve]",
    "Why are {x} [useful|important|needed]",
    "Why does {place} [have|use|need] {x}",
)
HOW = (
    "How [do|can|could|should] I {x}",
    "How [do|can] [you|we] {x}",
    "[What is the command|Which command do I use|What do I type|What must I do|What do I have to do] to {x}",
    "[I want to|I need to|I would like to] {x}",
    "[Show me how to|Tell me how to|Explain how to|Can you tell me how to|Do you know how to|How to] {x}",
    "What is the [way|best way|command] to {x}",
)
DIFFERENCE = (
    "What is the difference between {a} and {b}",
    "What's the difference between {a} and {b}",
    "How [do|does] {a} and {b} differ",
    "How [is|are] {a} different from {b}",
    "[Compare|Please compare|Can you compare] {a} [and|with] {b}",
    "[Explain|Tell me|Do you know] the difference between {a} and {b}",
    "{a} or {b}, what is the difference",
    "{a} [versus|vs] {b}",
    "Difference between {a} and {b}",
)
FOLLOW_UP_WHY = (
    "[And why|Why] [do|would|should] I [need|use] it",
    "[And what|What] is it [for|good for|used for]",
    "[And what|What] does it do",
    "Why is it [useful|important|needed]",
    "[And why|Why]",
    "Tell me more[| about it]",
)
FOLLOW_UP_WHAT = ("[And what|What] is it[| exactly]", "[And what|What] is that[| exactly]", "Explain it[| to me]")
REPEAT = ("[Say|Tell me] that again", "Repeat that", "Can you repeat that", "Once more", "What did you say")

CONSONANTS, VOWELS = "bdfgklmnprstvwz", "aeiou"
ENDINGS = ("n", "r", "l", "s", "x", "t", "th", "nd", "rk", "sh", "ng", "st")

TOPICS = {
    "facts": 0.40,
    "commands": 0.09,
    "sums": 0.24,
    "counting": 0.13,
    "talk": 0.06,
    "unknown": 0.06,
    "beyond": 0.02,
}
HELD_OUT = {"facts": 86, "commands": 22, "sums": 44, "counting": 26, "talk": 6, "unknown": 12, "beyond": 4}


@dataclass(frozen=True, slots=True)
class Fact:
    """One answer and all cores (wordings without courtesies and end punctuation) that ask for it."""

    topic: str
    name: str
    cores: tuple[str, ...]
    answer: str
    first_turn_only: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """A question as a person types it and the one right answer. `core` is the question without its trimmings."""

    topic: str
    core: str
    question: str
    answer: str
    fact: Fact | None = None

    def is_right(self, answer: str) -> bool:
        """Right means the whole answer, word for word and number for number."""
        return answer.strip() == self.answer


@cache
def facts() -> tuple[Fact, ...]:
    """Everything in `facts/*.toml`, questions written out."""
    found: list[Fact] = []
    for place, file in (("Kubernetes", "kubernetes.toml"), ("Quire", "quire.toml")):
        for subject in _read(file)["subject"]:
            found += _subject_facts(subject, place)
    commands = _read("commands.toml")
    for command in commands["command"]:
        cores = [text.format(x=doing) for doing in command["doing"] for pattern in HOW for text in expand(pattern)]
        found.append(_fact("commands", command["doing"][0], cores, command["answer"]))
    for difference in commands["difference"]:
        named = [*difference["between"], [_bare(name) for name in difference["between"][0]]]
        pairs = [pair for a, b in named for pair in ((a, b), (b, a))]
        cores = [text.format(a=a, b=b) for a, b in pairs for pattern in DIFFERENCE for text in expand(pattern)]
        found.append(_fact("commands", " / ".join(difference["between"][0]), cores, difference["answer"]))
    for question in commands["question"]:
        cores = [text for pattern in question["ask"] for text in expand(pattern)]
        found.append(_fact("commands", cores[0], cores, question["answer"]))
    for talk in _read("smalltalk.toml")["talk"]:
        cores = [text for pattern in talk["ask"] for text in expand(pattern)]
        found.append(_fact("talk", cores[0], cores, talk["answer"], talk.get("first_turn_only", False)))
    return tuple(found)


def draw(rng: random.Random, split: Split, topic: str | None = None, *, first_turn: bool = True) -> Example:
    """One example of a split, of any topic unless one is named."""
    if topic is None:
        topic = rng.choices(list(TOPICS), list(TOPICS.values()))[0]
    slips = split == "train"
    if topic in ("facts", "commands", "talk"):
        while True:
            fact = rng.choice(_facts_of(topic))
            cores = _cores_of(fact, split)
            if cores and (first_turn or not fact.first_turn_only):
                core = rng.choice(cores)
                return Example(topic, core, dress(core, rng, slips=slips), fact.answer, fact)
    if topic == "unknown":
        while True:
            core = _unknown_core(rng)
            if split_of(core) == split:
                return Example(topic, core, dress(core, rng, slips=slips), UNKNOWN)
    question = {"sums": numbers.sum_question, "counting": numbers.count_question, "beyond": numbers.refused_question}
    while True:
        asked = question[topic](rng)
        if split_of(asked.key) == split:
            return Example(topic, asked.core, dress(asked.core, rng), asked.answer)


def held_out(split: Split = "test", seed: int = 2026) -> list[Example]:
    """The 200 held-out questions: no two with the same core, topics in the proportions of `HELD_OUT`."""
    rng = random.Random(f"{split} {seed}")
    chosen: list[Example] = []
    seen: set[str] = set()
    for topic, count in HELD_OUT.items():
        while count:
            example = draw(rng, split, topic)
            if normalize(example.core) not in seen:
                seen.add(normalize(example.core))
                chosen.append(example)
                count -= 1
    rng.shuffle(chosen)
    return chosen


def follow_up(rng: random.Random, before: Example) -> Example | None:
    """A question that only the turn before makes clear, or None when nothing fits."""
    if before.fact and before.topic == "facts" and rng.random() < 0.8:
        name, facet = before.fact.name.rsplit(" ", 1)
        other, patterns = ("why", FOLLOW_UP_WHY) if facet == "what" else ("what", FOLLOW_UP_WHAT)
        answer = _answers()[f"{name} {other}"]
    elif len(before.answer) < 200:
        patterns, answer = REPEAT, before.answer
    else:
        return None
    core = rng.choice(expand(rng.choice(patterns)))
    return Example("follow-up", core, dress(core, rng), answer)


def _read(file: str) -> dict:
    with (FACTS / file).open("rb") as source:
        return tomllib.load(source)


def _bare(name: str) -> str:
    article, _, rest = name.partition(" ")
    return rest if article in ("a", "an", "the") else name


def _subject_facts(subject: dict, place: str) -> list[Fact]:
    found = []
    for facet, one, many in (("what", WHAT_ONE, WHAT_MANY), ("why", WHY_ONE, WHY_MANY)):
        cores = []
        for names, patterns in ((subject["one"], one), (subject.get("many", []), many)):
            for x in names:
                for pattern in patterns:
                    if "{place}" in pattern and place.lower() in x.lower():
                        continue
                    cores += [text.format(x=x, bare=_bare(x), place=place) for text in expand(pattern)]
        found.append(_fact("facts", f"{subject['one'][0]} {facet}", cores, subject[facet]))
    return found


def _fact(topic: str, name: str, cores: list[str], answer: str, first_turn_only: bool = False) -> Fact:
    return Fact(topic, name, tuple(dict.fromkeys(capitalize(core) for core in cores)), answer, first_turn_only)


@cache
def _facts_of(topic: str) -> tuple[Fact, ...]:
    return tuple(fact for fact in facts() if fact.topic == topic)


@cache
def _cores_of(fact: Fact, split: Split) -> tuple[str, ...]:
    return tuple(core for core in fact.cores if split_of(core) == split)


@cache
def _answers() -> dict[str, str]:
    return {fact.name: fact.answer for fact in facts()}


@cache
def _unknown_words() -> dict[str, list[str]]:
    return _read("unknown.toml")


def _unknown_core(rng: random.Random) -> str:
    words = _unknown_words()
    noun, other = (rng.choice(words["noun"]) if rng.random() < 0.6 else _nonsense(rng) for _ in range(2))
    named = {kind: rng.choice(words[kind]) for kind in ("place", "work", "person")}
    text = rng.choice(expand(rng.choice(words["ask"]))).format(noun=noun, other=other, **named)
    return capitalize(text.strip())


def _nonsense(rng: random.Random) -> str:
    while True:
        if rng.random() < 0.25:
            word = "".join(rng.choices(string.ascii_letters if rng.random() < 0.3 else string.ascii_uppercase, k=4))
            word = word[: rng.randint(2, 4)]
        else:
            syllables = (rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randint(1, 3)))
            word = "".join(syllables) + rng.choice(ENDINGS)
        if word.lower() not in _known_words():
            return rng.choice(("a ", "the ", "", "")) + word


@cache
def _known_words() -> frozenset[str]:
    return frozenset(word for fact in facts() for core in fact.cores for word in normalize(core).split())
