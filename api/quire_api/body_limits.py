"""How many values one request body may hold, told before it is parsed.

A JSON parser holds the interpreter's lock, so that neither the gateway's nor the engine's loop turns meanwhile, and the
largest body in bytes may be a hundred times slower than usual if it is made of nothing but brackets.
"""

from collections.abc import Sequence

MAX_VALUES = 1 << 20
"""A number takes up to 1 us to parse and check."""
MAX_CONTAINERS = 1 << 16
"""An object or a list takes up to 10 us."""
TOO_MANY_VALUES = (
    f"The body holds more than {MAX_VALUES} values, or {MAX_CONTAINERS} objects and lists. Send several requests."
)


def holds_too_much(data: bytes) -> bool:
    """By its commas and brackets; those inside of strings are told apart only where all together are too many."""
    if len(data) <= MAX_CONTAINERS or _is_within([data]):
        return False
    unescaped = data.replace(rb"\\", b"").replace(rb"\"", b"")
    return unescaped.count(b'"') > 4 * MAX_VALUES or not _is_within(unescaped.split(b'"')[::2])


def _is_within(parts: Sequence[bytes]) -> bool:
    values = sum(part.count(b",") for part in parts)
    containers = sum(part.count(b"{") + part.count(b"[") for part in parts)
    return values <= MAX_VALUES and containers <= MAX_CONTAINERS
