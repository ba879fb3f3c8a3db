"""Which routes fit into the one Secret that gateways follow. Pure.

Where not all do, what gateways know stays, and what is new waits: the smallest addition comes first. What makes the
table smaller is never refused, so that a key which is taken away is gone, and a deployment too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from quire_api.routing_secret import LIMIT, pack
from quire_api.wire import Deployment, RoutingTable
from quire_operator.world import Finding, Key


@dataclass(frozen=True)
class Table:
    """What is to be written."""

    entries: Mapping[Key, Deployment]
    fields: Mapping[str, bytes]

    @classmethod
    def of(cls, entries: Mapping[Key, Deployment]) -> "Table":
        return cls(entries, pack(RoutingTable(deployments=[entries[key] for key in sorted(entries)])))

    @property
    def size(self) -> int:
        """Bytes in the Secret."""
        return sum(map(len, self.fields.values()))


def fitting(former: Mapping[Key, Deployment], wished: Mapping[Key, Deployment], limit: int = LIMIT) -> Table:
    """The table nearest to `wished` within `limit` bytes, where gateways have `former`."""
    whole = Table.of(wished)
    if whole.size <= limit:
        return whole
    growth = {key: _size(entry) - _size(former.get(key)) for key, entry in wished.items() if entry != former.get(key)}
    changes = sorted(growth, key=lambda key: (growth[key], key))

    def with_first(count: int) -> Table:
        waiting = set(changes[count:])
        entries = {key: former.get(key) if key in waiting else entry for key, entry in wished.items()}
        return Table.of({key: entry for key, entry in entries.items() if entry is not None})

    fits, too_many = sum(size <= 0 for size in growth.values()), len(changes)
    best = with_first(fits)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        table = with_first(middle)
        if table.size <= limit:
            fits, best = middle, table
        else:
            too_many = middle
    return best


def refusal_of(entry: Deployment, *, is_known: bool) -> Finding:
    """What the owner of a deployment is told whose entry, or its change, found no room."""
    state = "go on with its former names, keys and limits" if is_known else "do not know this deployment"
    keys = f"; most of this entry are its {len(entry.api_keys)} API keys" if len(entry.api_keys) > 1 else ""
    return Finding(
        "RoutingTableFull",
        f"the routing table has reached the {LIMIT:,} bytes that a Secret takes, so gateways {state}{keys}. "
        "Use fewer API keys, delete what is not needed, or serve some namespaces by a second installation",
    )


def _size(entry: Deployment | None) -> int:
    return len(msgspec.json.encode(entry)) if entry is not None else 0
