"""Typed reading of the JSON files in a model directory."""

import json
import math
from pathlib import Path
from typing import Any

from quire_runtime.model.errors import MalformedModel

LIMIT = 2**31


class Fields:
    """One JSON object, read field by field; `where` names it in errors.

    Raises:
        MalformedModel: a field is missing, of the wrong type or outside its bounds.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    @classmethod
    def from_file(cls, path: Path) -> "Fields":
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise MalformedModel(
                f"{path} cannot be read as JSON ({error}). Copy or download the model again."
            ) from error
        if not isinstance(values, dict):
            raise MalformedModel(f"{path} must hold a JSON object; it holds a {type(values).__name__}.")
        return cls(values, str(path))

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def whole(self, name: str, default: int | None = None, low: int = 1, high: int = LIMIT) -> int:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "a whole number")
        if not low <= value <= high:
            raise self._wrong(name, f"from {low} to {high}")
        return value

    def real(self, name: str, default: float | None = None, above: float = 0.0) -> float:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number")
        if not math.isfinite(value) or value <= above:
            raise self._wrong(name, f"above {above:g} and finite")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def reals(self, name: str) -> tuple[float, ...]:
        value = self._get(name, None)
        if not isinstance(value, list) or not all(_is_positive(item) for item in value):
            raise self._wrong(name, "a list of positive numbers")
        return tuple(float(item) for item in value)

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._get(name, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of strings")
        return tuple(value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One id, a list of ids, or nothing."""
        value = self.values.get(name)
        items = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            raise self._wrong(name, "a token id or a list of token ids")
        return tuple(item for item in items if item >= 0)

    def object(self, name: str) -> "Fields":
        value = self.values.get(name)
        if value is None:
            return Fields({}, f"{self.where}: {name}")
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return Fields(value, f"{self.where}: {name}")

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise MalformedModel(f"{self.where} lacks {name}. Is this the directory of a complete Hugging Face model?")
        return default

    def _wrong(self, name: str, expected: str) -> MalformedModel:
        shown = repr(self.values.get(name))
        return MalformedModel(f"{self.where}: {name} must be {expected}; it is {shown[:80]}.")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
