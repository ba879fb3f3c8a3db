"""API keys as they lie in a Secret: every value a plain key, or a mapping with the key and what is special about it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from quire_api import wire
from quire_api.v1alpha1 import AccessSpec, KeyLimits, WireModel


class KeyEntry(WireModel):
    """A value of the Secret that is more than a key."""

    key: Annotated[str, Field(min_length=1)]
    limits: KeyLimits = Field(default_factory=KeyLimits)
    """Take the place of the deployment's, one by one."""
    priority: Annotated[int, Field(ge=-(2**20), le=2**20)] = 0
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    expires: str | None = None
    cache_group: str = ""

    @field_validator("expires")
    @classmethod
    def _is_time(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                _unix_time(text)
            except ValueError:
                message = f'"{text}" is no time; write for example 2027-01-31T00:00:00Z'
                raise PydanticCustomError("form", message.replace("{", "{{")) from None
        return text


def read_api_keys(values: Mapping[str, str], access: AccessSpec) -> tuple[list[wire.ApiKey], list[str]]:
    """The keys of a Secret's `values`, by name, and what is wrong with entries that cannot be used.

    The problems name entries and fields, never a key.
    """
    keys: list[wire.ApiKey] = []
    problems = []
    owners: dict[str, str] = {}
    for name, value in sorted(values.items()):
        try:
            entry = _entry(value)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        if entry.key in owners:
            problems.append(f"{name}: is the same key as {owners[entry.key]}; give each name a key of its own")
            continue
        owners[entry.key] = name
        keys.append(
            wire.ApiKey(
                name=name,
                key=entry.key,
                limits=wire_limits(access.limits, entry.limits),
                priority=entry.priority,
                weight=entry.weight,
                expires_at=None if entry.expires is None else _unix_time(entry.expires),
                cache_group=entry.cache_group,
            )
        )
    return keys, problems


def wire_limits(limits: KeyLimits | None, own: KeyLimits | None = None) -> wire.KeyLimits:
    """`limits`, with each that `own` sets in its place."""
    merged = {} if limits is None else limits.model_dump(exclude_none=True)
    merged |= {} if own is None else own.model_dump(exclude_none=True)
    return wire.KeyLimits(**merged)


def _entry(value: str) -> KeyEntry:
    text = value.strip()
    if not text:
        raise ValueError("is empty; write the key")
    if not text.startswith("{") and "\n" not in text:
        return KeyEntry(key=text)
    try:
        # Base tags only: a timestamp stays the text that it is.
        data = yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError:
        raise ValueError("is no plain key, and not YAML or JSON either") from None
    if not isinstance(data, dict):
        raise ValueError("is neither a plain key nor a mapping with `key`")
    try:
        return KeyEntry.model_validate(data, by_alias=True, by_name=False, strict=False)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the mapping"
        raise ValueError(f"{where}: {first['msg']}") from None


def _unix_time(text: str) -> float:
    """Without an offset the time is UTC."""
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
