"""The routing table as it lies in a Secret, between the operator that writes it and the gateways that follow it.

A Secret holds 1 MiB. The table is plain JSON while that suffices, which every gateway reads, and compressed beyond:
an entry without API keys then takes some 35 bytes instead of 235. Keys are random, and shrink by half.
"""

import zlib
from collections.abc import Mapping

import msgspec

from quire_api.wire import RoutingTable

PLAIN = "table.json"
PACKED = "table.json.zlib"
LIMIT = 1_000_000
"""Bytes of either entry; the rest of the 1 MiB is left for what cannot be refused."""


def pack(table: RoutingTable) -> dict[str, bytes]:
    """The one entry of the Secret, which may be longer than LIMIT."""
    data = msgspec.json.encode(table)
    return {PLAIN: data} if len(data) <= LIMIT else {PACKED: zlib.compress(data)}


def unpack(entries: Mapping[str, bytes]) -> bytes:
    """The table as JSON; empty where there is none.

    Raises:
        ValueError: the compressed table is damaged.
    """
    if PACKED not in entries:
        return entries.get(PLAIN, b"")
    try:
        return zlib.decompress(entries[PACKED])
    except zlib.error as error:
        raise ValueError(f"{PACKED} cannot be unpacked: {error}") from None
