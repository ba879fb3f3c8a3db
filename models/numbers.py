"""Counting and small sums: questions with numbers, and their answers worked out in words.

Every question carries a key that names its numbers and not its wording, so that a held-out sum is held out in every
wording.
"""

import random
from dataclasses import dataclass

LARGEST = 100
TOO_LARGE = "That is too large for me. I add and subtract numbers from 0 to 100."
NO_PRODUCTS = "I have only learned to add and subtract, not to multiply or divide."
TOO_FAR = "That is too far for me. I count between 0 and 100."

THINGS = ("pods", "nodes", "replicas", "requests", "tokens", "services", "GPUs", "containers", "engines", "blocks")


@dataclass(frozen=True, slots=True)
class NumberQuestion:
    key: str
    core: str
    answer: str


def sum_question(rng: random.Random) -> NumberQuestion:
    """Addition or subtraction of numbers from 0 to 100, as a formula or as a little story."""
    a, b = _operand(rng), _operand(rng)
    if rng.random() < 0.5:
        key = f"sum {min(a, b)} {max(a, b)}"
        if rng.random() < 0.25:
            thing = rng.choice(THINGS)
            core = rng.choice(
                (
                    f"I have {a} {thing} and get {b} more, how many {thing} do I have",
                    f"There are {a} {thing} and {b} more are added, how many {thing} are there",
                    f"If I have {a} {thing} and add {b}, how many {thing} are there",
                    f"{a} {thing} are running and {b} more start, how many {thing} are running",
                )
            )
            return NumberQuestion(key, core, f"{addition(a, b)} That makes {a + b} {thing}.")
        core = rng.choice(
            (
                f"What is {a} + {b}",
                f"What is {a} plus {b}",
                f"{a} + {b}",
                f"{a}+{b}",
                f"{a} + {b} =",
                f"{a} plus {b}",
                f"How much is {a} + {b}",
                f"How much is {a} plus {b}",
                f"Add {a} and {b}",
                f"Add {b} to {a}",
                f"Calculate {a} + {b}",
                f"Compute {a} + {b}",
                f"What is the sum of {a} and {b}",
                f"Give me the sum of {a} and {b}",
                f"What do you get when you add {a} and {b}",
                f"Can you add {a} and {b}",
                f"What does {a} + {b} make",
            )
        )
        return NumberQuestion(key, core, addition(a, b))
    if a < b and rng.random() < 0.75:
        a, b = b, a
    key = f"difference {a} {b}"
    if a >= b and rng.random() < 0.25:
        thing = rng.choice(THINGS)
        core = rng.choice(
            (
                f"I have {a} {thing} and lose {b}, how many {thing} are left",
                f"There are {a} {thing} and {b} are removed, how many {thing} are left",
                f"If I have {a} {thing} and take away {b}, how many {thing} remain",
                f"{a} {thing} are running and {b} stop, how many {thing} are running",
            )
        )
        return NumberQuestion(key, core, f"{subtraction(a, b)} That leaves {a - b} {thing}.")
    core = rng.choice(
        (
            f"What is {a} - {b}",
            f"What is {a} minus {b}",
            f"{a} - {b}",
            f"{a}-{b}",
            f"{a} - {b} =",
            f"{a} minus {b}",
            f"How much is {a} - {b}",
            f"How much is {a} minus {b}",
            f"Subtract {b} from {a}",
            f"Take {b} away from {a}",
            f"Calculate {a} - {b}",
            f"Compute {a} - {b}",
            f"What is the difference {a} - {b}",
            f"What is left when you take {b} from {a}",
            f"Can you subtract {b} from {a}",
            f"What does {a} - {b} make",
        )
    )
    return NumberQuestion(key, core, subtraction(a, b))


def addition(a: int, b: int) -> str:
    """The sum in words; two numbers of two digits are added tens first."""
    if a < 10 or b < 10:
        return f"{a} + {b} = {a + b}."
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return (
        f"First the tens: {a // 10 * 10} + {b // 10 * 10} = {tens}. "
        f"Then the ones: {a % 10} + {b % 10} = {ones}. So {a} + {b} = {a + b}."
    )


def subtraction(a: int, b: int) -> str:
    """The difference in words; a number of two digits is taken away tens first, a negative result is turned round."""
    if a < b:
        return f"{a} is smaller than {b}, so the result is below zero. {_steps(b, a)}So {a} - {b} = -{b - a}."
    steps = _steps(a, b) if b >= 10 and b % 10 else ""
    return f"{steps}So {a} - {b} = {a - b}." if steps else f"{a} - {b} = {a - b}."


def _steps(a: int, b: int) -> str:
    if b < 10 or b % 10 == 0:
        return f"{a} - {b} = {a - b}. "
    tens = b // 10 * 10
    return f"First the tens: {a} - {tens} = {a - tens}. Then the ones: {a - tens} - {b % 10} = {a - b}. "


def count_question(rng: random.Random) -> NumberQuestion:
    """Counting up, down or in steps between 0 and 100; neighbours, larger and smaller, how many numbers in a range."""
    match rng.random():
        case chance if chance < 0.40:
            first, last = _range(rng)
            if (first == 1 and rng.random() < 0.7) or rng.random() < 0.15:
                first = 1
                last = max(last, 2)
                core = rng.choice((f"Count to {last}", f"Count up to {last}", f"Can you count to {last}"))
            else:
                core = rng.choice(
                    (
                        f"Count from {first} to {last}",
                        f"Count from {first} up to {last}",
                        f"Can you count from {first} to {last}",
                        f"List the numbers from {first} to {last}",
                        f"Write all numbers from {first} to {last}",
                        f"What are the numbers from {first} to {last}",
                        f"Start at {first} and count to {last}",
                        f"Give me the numbers between {first} and {last}, both included",
                    )
                )
            return NumberQuestion(f"count {first} {last}", core, counted(first, last, 1))
        case chance if chance < 0.55:
            first, last = _range(rng)
            if rng.random() < 0.15:
                core = rng.choice((f"Count down from {last}", f"Countdown from {last}", f"Count backwards from {last}"))
                return NumberQuestion(f"down {last} 0", core, counted(last, 0, -1))
            core = rng.choice(
                (
                    f"Count from {last} to {first}",
                    f"Count from {last} down to {first}",
                    f"List the numbers from {last} to {first}",
                    f"Count down from {last} to {first}",
                    f"Count backwards from {last} to {first}",
                    f"Can you count down from {last} to {first}",
                    f"Start at {last} and count down to {first}",
                    f"Count back from {last} to {first}",
                )
            )
            return NumberQuestion(f"down {last} {first}", core, counted(last, first, -1))
        case chance if chance < 0.72:
            step = rng.choice((2, 2, 3, 4, 5, 5, 10, 10, rng.randint(2, 12)))
            first = rng.choice((0, 0, step, rng.randint(0, 30)))
            last = rng.randint(first + step, min(LARGEST, first + step * rng.randint(2, 14)))
            if rng.random() < 0.5:
                last -= (last - first) % step
            core = rng.choice(
                (
                    f"Count from {first} to {last} by {step}",
                    f"Count by {step} from {first} to {last}",
                    f"Count from {first} to {last} in steps of {step}",
                    f"Can you count from {first} to {last} by {step}",
                    f"Start at {first} and count to {last} by {step}",
                )
            )
            return NumberQuestion(f"steps {first} {last} {step}", core, counted(first, last, step))
        case chance if chance < 0.80:
            n = rng.randint(0, LARGEST - 1)
            core = rng.choice(
                (f"What comes after {n}", f"Which number comes after {n}", f"What is the next number after {n}")
            )
            return NumberQuestion(f"after {n}", core, f"{n + 1} comes after {n}.")
        case chance if chance < 0.86:
            n = rng.randint(1, LARGEST)
            core = rng.choice(
                (f"What comes before {n}", f"Which number comes before {n}", f"What is the number before {n}")
            )
            return NumberQuestion(f"before {n}", core, f"{n - 1} comes before {n}.")
        case chance if chance < 0.93:
            a, b = rng.sample(range(LARGEST + 1), 2)
            low, high = min(a, b), max(a, b)
            if rng.random() < 0.5:
                word = rng.choice(("larger", "bigger", "greater", "higher", "more"))
                core = rng.choice(
                    (
                        f"Which is {word}, {a} or {b}",
                        f"Which number is {word}: {a} or {b}",
                        f"What is {word}, {a} or {b}",
                        f"Is {a} {word} than {b}",
                    )
                )
                return NumberQuestion(f"compare {low} {high}", core, f"{high} is larger than {low}.")
            word = rng.choice(("smaller", "lower", "less"))
            core = rng.choice(
                (
                    f"Which is {word}, {a} or {b}",
                    f"Which number is {word}: {a} or {b}",
                    f"What is {word}, {a} or {b}",
                    f"Is {a} {word} than {b}",
                )
            )
            return NumberQuestion(f"compare {low} {high}", core, f"{low} is smaller than {high}.")
        case _:
            first = rng.randint(0, 60)
            last = first + rng.randint(1, 30)
            core = rng.choice(
                (
                    f"How many numbers are there from {first} to {last}",
                    f"How many numbers are in the range from {first} to {last}",
                    f"If I count from {first} to {last}, how many numbers is that",
                )
            )
            between = last - first
            answer = f"{last} - {first} = {between}, and one more is {between + 1}. So there are {between + 1} numbers."
            return NumberQuestion(f"range {first} {last}", core, answer)


def refused_question(rng: random.Random) -> NumberQuestion:
    """Numbers beyond what was learned: products, large sums, counting too far."""
    kind = rng.random()
    if kind < 0.35:
        a, b = rng.randint(0, 120), rng.randint(0, 120)
        core = rng.choice(
            (
                f"What is {a} times {b}",
                f"{a} * {b}",
                f"{a} x {b}",
                f"Multiply {a} by {b}",
                f"What is {a} divided by {b}",
                f"{a} / {b}",
                f"Divide {a} by {b}",
                f"How much is {a} * {b}",
            )
        )
        return NumberQuestion(f"product {a} {b}", core, NO_PRODUCTS)
    large = rng.randint(101, 10 ** rng.randint(3, 6))
    if kind < 0.8:
        a, b = rng.sample((large, rng.choice((rng.randint(0, 100), rng.randint(101, 9999)))), 2)
        sign, word = rng.choice((("+", "plus"), ("-", "minus")))
        core = rng.choice(
            (f"What is {a} {sign} {b}", f"{a} {sign} {b}", f"How much is {a} {word} {b}", f"What is {a} {word} {b}")
        )
        return NumberQuestion(f"large {a} {sign} {b}", core, TOO_LARGE)
    core = rng.choice(
        (
            f"Count to {large}",
            f"Count from {rng.randint(0, 100)} to {large}",
            f"Count down from {large} to {rng.randint(0, 100)}",
        )
    )
    return NumberQuestion(core, core, TOO_FAR)


def counted(first: int, last: int, step: int) -> str:
    """The numbers from `first` towards `last`, which is included when the steps meet it."""
    numbers = range(first, last + (1 if step > 0 else -1), step)
    return ", ".join(map(str, numbers)) + "."


def _operand(rng: random.Random) -> int:
    chance = rng.random()
    if chance < 0.08:
        return rng.choice((0, LARGEST, LARGEST, rng.randint(1, 9) * 10))
    return rng.randint(0, 20) if chance < 0.35 else rng.randint(0, LARGEST)


def _range(rng: random.Random) -> tuple[int, int]:
    span = rng.choice((rng.randint(1, 14), rng.randint(1, 14), rng.randint(5, 30), rng.randint(1, LARGEST)))
    first = rng.choice((1, rng.randint(0, LARGEST - span)))
    return first, min(LARGEST, first + span)
