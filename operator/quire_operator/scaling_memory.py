"""The scaling law's memory as text, so that it outlives who keeps it; and how often that is worth a write. Pure.

Of the past it holds what no look at the present tells: how much was needed lately, since when as many replicas are
ready (and so for how long the last one has been idle), what was decided last, and who else has written the number.
"""

from dataclasses import fields, replace
from typing import Any

import msgspec

from quire_operator.autoscale import History

SAVE_EVERY_S = 60.0
_SERIES = ("highs", "peaks", "arrivals", "asked", "outgrown")
"""Pairs of a moment and a value; the newest counts until the next."""


def to_text(history: History, now: float, clock: float) -> str:
    """`history`, whose times are on the same clock as `now`; clock: the wall's time now, seconds."""
    return msgspec.json.encode(_shifted(history, clock - now)).decode()


def from_text(text: str, now: float, clock: float) -> History | None:
    """The history that was written as `text`, on the clock of `now`; None if it cannot be understood.

    What was in demand last counts as if it were now: nobody has looked since. What says how long something has lasted
    without a break begins anew.
    """
    try:
        history = _shifted(msgspec.json.decode(text, type=History), now - clock)
    except msgspec.MsgspecError:
        return None
    changes: dict[str, Any] = {name: _until(getattr(history, name), now) for name in _SERIES}
    return replace(history, **changes, lows=(), relieved_at=None, admitted=0, idle_since_at=None)


class Saved:
    """What has been written of one deployment's memory."""

    def __init__(self) -> None:
        self._now: tuple[Any, ...] = ()
        self._later: tuple[Any, ...] = ()
        self._at = float("-inf")

    def is_due(self, history: History, now: float) -> bool:
        """Whether `history` is to be written: at once if replicas came or went or somebody wrote their number, each
        minute if anything else is another, and not because time has passed.
        """
        if _urgent(history) != self._now:
            return True
        return now - self._at >= SAVE_EVERY_S and _values(history) != self._later

    def wrote(self, history: History, now: float) -> None:
        """It stands there now."""
        self._now, self._later, self._at = _urgent(history), _values(history), now


def _urgent(history: History) -> tuple[Any, ...]:
    return history.wrote, history.ready, len(history.rival_writes)


def _values(history: History) -> tuple[Any, ...]:
    times = (None if value is None else float(f"{value:.1g}") for value in (history.service_s, history.start_s))
    return (*(tuple(value for _, value in getattr(history, name)) for name in _SERIES), *times)


def _until(series: tuple[tuple[float, Any], ...], now: float) -> tuple[tuple[float, Any], ...]:
    return (*series[:-1], (now, series[-1][1])) if series else ()


def _shifted(history: History, by: float) -> History:
    changes: dict[str, Any] = {}
    for name in (field.name for field in fields(History)):
        value = getattr(history, name)
        if name in ("lows", *_SERIES):
            changes[name] = tuple((at + by, each) for at, each in value)
        elif name == "rival_writes":
            changes[name] = tuple(at + by for at in value)
        elif name.endswith("_at") and value is not None:
            changes[name] = value + by
    return replace(history, **changes)
