import random
from itertools import pairwise

import pytest

from models import numbers
from models.conversations import TURN_END, TURN_START, training_document
from models.phrasing import dress, expand, normalize, split_of
from models.world import FOLLOW_UP_WHAT, FOLLOW_UP_WHY, HELD_OUT, REPEAT, UNKNOWN, draw, facts, held_out


def test_the_same_seed_writes_the_same_text():
    first, second = (
        [training_document(rng) for _ in range(200)] for rng in (random.Random("seed"), random.Random("seed"))
    )
    assert first == second
    assert first != [training_document(random.Random("other")) for _ in range(200)]


def test_held_out_questions_are_200_and_differ_from_each_other():
    examples = held_out()
    assert len(examples) == sum(HELD_OUT.values()) == 200
    assert len({normalize(example.core) for example in examples}) == 200
    assert examples == held_out()


def test_no_held_out_question_appears_in_training():
    held = {normalize(text) for example in held_out() for text in (example.core, example.question)}
    rng = random.Random("training")
    for _ in range(30_000):
        example = draw(rng, "train")
        assert normalize(example.core) not in held, example
    for _ in range(5_000):
        document = training_document(rng)
        for (opening, _), (content, _) in pairwise(document):
            if opening == f"{TURN_START}user\n":
                assert normalize(content.removesuffix(TURN_END)) not in held, content


def test_no_follow_up_is_worded_like_a_held_out_question():
    held = {normalize(example.core) for example in held_out()}
    patterns = (*FOLLOW_UP_WHY, *FOLLOW_UP_WHAT, *REPEAT)
    assert held.isdisjoint(normalize(text) for pattern in patterns for text in expand(pattern))


def test_a_held_out_sum_is_held_out_in_every_wording():
    rng = random.Random(3)
    by_numbers: dict[str, set[str]] = {}
    for _ in range(20_000):
        question = numbers.sum_question(rng)
        by_numbers.setdefault(question.key, set()).add(split_of(question.key))
    assert all(len(splits) == 1 for splits in by_numbers.values())
    assert {"train", "dev", "test"} == set.union(*by_numbers.values())


def test_every_question_has_one_answer():
    answers: dict[str, str] = {}
    for fact in facts():
        for core in fact.cores:
            assert answers.setdefault(normalize(core), fact.answer) == fact.answer, core


def test_every_fact_can_be_learned():
    for fact in facts():
        assert sum(split_of(core) == "train" for core in fact.cores) >= 5, fact.name


def test_right_is_exact():
    example = draw(random.Random(1), "train", "sums")
    assert example.is_right(example.answer)
    assert example.is_right(f" {example.answer}\n")
    assert not example.is_right(example.answer + " Or so.")
    assert not example.is_right("")


@pytest.mark.parametrize("topic", ["sums", "counting"])
def test_answers_with_numbers_add_up(topic: str):
    rng = random.Random(topic)
    for _ in range(2000):
        for sentence in draw(rng, "train", topic).answer.replace("So ", "").split(". "):
            left, equals, right = sentence.rstrip(".").partition(" = ")
            if not equals or "," in right:
                continue
            a, sign, b = left.rsplit(": ", 1)[-1].split(" ")
            assert (int(a) + int(b) if sign == "+" else int(a) - int(b)) == int(right), sentence


@pytest.mark.parametrize(
    ("first", "last", "step", "text"),
    [(1, 4, 1, "1, 2, 3, 4."), (4, 1, -1, "4, 3, 2, 1."), (0, 11, 5, "0, 5, 10."), (0, 10, 5, "0, 5, 10.")],
)
def test_counting_includes_both_ends_that_are_met(first: int, last: int, step: int, text: str):
    assert numbers.counted(first, last, step) == text


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (27, 62, "27 is smaller than 62, so the result is below zero. First the tens: 62 - 20 = 42. "
                 "Then the ones: 42 - 7 = 35. So 27 - 62 = -35."),
        (50, 20, "50 - 20 = 30."),
        (62, 27, "First the tens: 62 - 20 = 42. Then the ones: 42 - 7 = 35. So 62 - 27 = 35."),
    ],
)  # fmt: skip
def test_subtraction_shows_its_work(a: int, b: int, text: str):
    assert numbers.subtraction(a, b) == text


def test_what_is_not_known_is_refused():
    rng = random.Random(5)
    assert {draw(rng, "train", "unknown").answer for _ in range(50)} == {UNKNOWN}


def test_trimmings_leave_the_question_the_same():
    rng = random.Random(2)
    for _ in range(500):
        assert "what is a pod" in normalize(dress("What is a pod", rng))


def test_patterns_expand_to_every_choice():
    assert expand("[a|b] c[| d]") == ["a c", "a c d", "b c", "b c d"]
