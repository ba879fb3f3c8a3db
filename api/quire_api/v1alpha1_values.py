"""The scalar forms of the resource: durations, quantities, shares of a whole; each a string with one pattern.

The patterns are written in the common ground of RE2 (the API server) and Rust's regex (pydantic): no look-around.
"""

import re
from collections.abc import Callable
from math import ceil, floor
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
KV_MEMORY_PATTERN = r"^(0?\.[0-9]+|1(\.0+)?|[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti))$"
PERCENT_PATTERN = r"^[0-9]+%$"

LONGEST_DURATION_S = 365 * 24 * 3600.0
LARGEST_QUANTITY = 2.0**63
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SUFFIX = {
    "": 1.0,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
}


def duration_seconds(text: str) -> float:
    """Seconds in a duration: "30s" -> 30.0, "1m30s" -> 90.0, "250ms" -> 0.25.

    Raises:
        ValueError: not a duration, or longer than a year.
    """
    if not re.fullmatch(DURATION_PATTERN[1:-1], text):
        raise ValueError(f"{text!r} is not a duration; write for example 30s, 1m30s or 250ms")
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", text)
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    if seconds > LONGEST_DURATION_S:
        raise ValueError(f"{text!r} is longer than a year; write at most 8760h")
    return seconds


def quantity_value(quantity: int | str) -> float:
    """Plain number behind a Kubernetes quantity: "500m" -> 0.5, "2Gi" -> 2147483648.0.

    Raises:
        ValueError: not a quantity, or beyond all bounds.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?", str(quantity))
    if not match:
        raise ValueError(f"{quantity!r} is not a quantity; write for example 4, 500m or 16Gi")
    value = float(match[1]) * _SUFFIX[match[2] or ""]
    if value > LARGEST_QUANTITY:
        raise ValueError(f"{quantity!r} is beyond all bounds; write for example 4, 500m or 16Gi")
    return value


def share_of(count: int, share: int | str, *, round_up: bool) -> int:
    """Replicas in an absolute number or a percentage of `count`: (4, "25%") -> 1, (4, 2) -> 2."""
    if isinstance(share, int):
        return share
    part = count * int(share.removesuffix("%")) / 100
    return ceil(part) if round_up else floor(part)


def is_fraction(kv_memory: str) -> bool:
    """Whether `engine.kvCache.memory` is a fraction of the device's memory (else it is a quantity)."""
    return re.fullmatch(r"[0-9]*\.?[0-9]+", kv_memory) is not None


def _text_with(pattern: str, kind: str, examples: str) -> BeforeValidator:
    """A check whose error names the kind and shows examples, where a bare pattern would be printed otherwise."""

    def check(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str):
            written = f"{value!r} without quotes is a number" if isinstance(value, int | float) else f"{value!r} is not"
            raise PydanticCustomError("form", f"{written}; write {kind} as text, for example {examples}")
        if not re.search(pattern, value):
            raise PydanticCustomError("form", f'"{value}" is not {kind}; write for example {examples}')
        return value

    return BeforeValidator(check)


def _int_or_text_with(pattern: str, kind: str, examples: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 0:
                raise PydanticCustomError("form", f"{value} is below 0; write {kind}, for example {examples}")
            return value
        if isinstance(value, float):
            raise PydanticCustomError(
                "form", f'{value} needs quotes here ("{value}"): {kind} is a whole number or text'
            )
        if not isinstance(value, str) or not re.search(pattern, value):
            raise PydanticCustomError("form", f"{value!r} is not {kind}; write for example {examples}")
        return value

    return BeforeValidator(check)


def _string_schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "maxLength": 32})


def _int_or_string_schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": pattern,
            "maxLength": 32,
            "x-kubernetes-int-or-string": True,
        }
    )


def _within(measure: Callable[[Any], float]) -> Callable[[Any], Any]:
    """Refuses what has the right form but is beyond what `measure` takes."""

    def check(value: Any) -> Any:
        try:
            measure(value)
        except ValueError as error:
            raise PydanticCustomError("bounds", "{problem}", {"problem": str(error)}) from None
        return value

    return check


Duration = Annotated[
    str,
    AfterValidator(_within(duration_seconds)),
    _text_with(DURATION_PATTERN, "a duration", "30s, 1m30s or 250ms"),
    _string_schema(DURATION_PATTERN),
]
Quantity = Annotated[
    int | str,
    AfterValidator(_within(quantity_value)),
    _int_or_text_with(QUANTITY_PATTERN, "a quantity", "4, 500m or 16Gi"),
    _int_or_string_schema(QUANTITY_PATTERN),
]
CountOrPercent = Annotated[
    int | str,
    _int_or_text_with(PERCENT_PATTERN, "a number of replicas or a percentage", "1 or 25%"),
    _int_or_string_schema(PERCENT_PATTERN),
]
KvMemory = Annotated[
    str,
    _text_with(KV_MEMORY_PATTERN, "a fraction or a quantity", '"0.9" or 40Gi'),
    _string_schema(KV_MEMORY_PATTERN),
]
