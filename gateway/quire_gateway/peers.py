"""What gateways before the same replicas tell one another: requests in flight, and what keys have used. Pure.

Every gateway tells its own counts and only those: a snapshot first, then what has changed, as values and not as steps,
so that a frame may be lost, doubled or late without a lasting error. What a peer told goes when its stream does, but
for what keys have used, which stays in the minute like any use.

A count is as old as the exchange (25 ms and the network). So two gateways may both give a replica's last slot away in
that time, and a key may have, beyond its limit, what it can begin within it at the other gateways.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from quire_api import wire
from quire_gateway.fleet import DeploymentState, Fleet
from quire_gateway.limits import Totals, Usage

_Where = tuple[str, str, str]
"""Namespace, deployment, and replica or name of the key."""
_Place = tuple[Literal["replica", "key"], _Where]


def counts_of(fleet: Fleet) -> dict[_Place, wire.PeerCount]:
    """This gateway's own counts that are not nought."""
    counts: dict[_Place, wire.PeerCount] = {}
    for (namespace, name), deployment in fleet.deployments.items():
        for replica in deployment.replicas.values():
            if replica.in_flight or replica.queued_tokens:
                counts["replica", (namespace, name, replica.id)] = wire.PeerCount(
                    kind="replica",
                    where=(namespace, name, replica.id),
                    in_flight=replica.in_flight,
                    tokens=replica.queued_tokens,
                )
        for caller in deployment.callers.everyone():
            usage = caller.usage
            if usage.own.requests:
                counts["key", (namespace, name, caller.name)] = wire.PeerCount(
                    kind="key",
                    where=(namespace, name, caller.name),
                    in_flight=usage.in_flight,
                    tokens=usage.reserved,
                    used=(usage.own.requests, usage.own.input_tokens, usage.own.output_tokens),
                )
    return counts


def snapshot_of(fleet: Fleet, now: float) -> list[wire.PeerCount]:
    """`counts_of` for who may hear them for the first time: what keys have used since the start is not all new."""
    told = list(counts_of(fleet).values())
    for count in told:
        if count.kind == "key":
            caller = fleet.deployments[count.where[:2]].callers.named(count.where[2])
            if caller is not None:
                count.lately = caller.usage.own_lately(now)
    return told


def changes(before: Mapping[_Place, wire.PeerCount], after: Mapping[_Place, wire.PeerCount]) -> list[wire.PeerCount]:
    """What must be told so that who knows `before` knows `after`."""
    told = [count for where, count in after.items() if before.get(where) != count]
    for (kind, where), count in before.items():
        if (kind, where) not in after:
            told.append(wire.PeerCount(kind=count.kind, where=where))
    return told


@dataclass(slots=True)
class Peer:
    """One other gateway as it has told of itself; `apply` and `lost` carry that into `fleet`."""

    fleet: Fleet
    _counts: dict[_Place, wire.PeerCount] = field(default_factory=dict)
    _used: dict[_Where, tuple[int, int, int]] = field(default_factory=dict)
    """Of each key, as far as it was counted here; outlives a stream that broke."""
    _usages: dict[_Place, Usage] = field(default_factory=dict)
    """Where each key's count went: a key that left the table and came back begins at nought."""
    _absent: set[_Where] = field(default_factory=set)
    """Keys that were in no table when `forget` was called last."""

    def apply(self, frame: wire.PeerFrame, now: float) -> None:
        """Take in what it tells."""
        if frame.is_snapshot:
            for where in self._counts.keys() - {(count.kind, count.where) for count in frame.counts}:
                self._take(wire.PeerCount(kind=where[0], where=where[1]), now)
        for count in frame.counts:
            self._take(count, now)
        self._pump()

    def lost(self) -> None:
        """It tells no more: its requests are over, or will be told again."""
        for kind, where in list(self._counts):
            self._take(wire.PeerCount(kind=kind, where=where), 0.0)
        self._pump()

    def forget(self) -> None:
        """Drop what was told of keys that are in no table, and were in none when this was called last."""
        absent = {where for where in self._used.keys() | {place[1] for place in self._usages} if not self._has(where)}
        for where in absent & self._absent:
            self._used.pop(where, None)
            self._usages.pop(("key", where), None)
        self._absent = absent

    def _has(self, where: _Where) -> bool:
        deployment = self.fleet.deployments.get(where[:2])
        return deployment is not None and deployment.callers.named(where[2]) is not None

    def _take(self, count: wire.PeerCount, now: float) -> None:
        place = count.kind, count.where
        before = self._counts.pop(place, None) or wire.PeerCount(kind=count.kind, where=count.where)
        if count.in_flight or count.tokens:
            self._counts[place] = count
        in_flight, tokens = count.in_flight - before.in_flight, count.tokens - before.tokens
        namespace, name, what = count.where
        deployment = self.fleet.deployments.get((namespace, name))
        if count.kind == "replica":
            others = self.fleet.others.setdefault((namespace, name), {})
            had = others.get(what, (0, 0))
            others[what] = had[0] + in_flight, had[1] + tokens
            if others[what] == (0, 0):
                del others[what]
            if not others and deployment is None:
                del self.fleet.others[namespace, name]
        elif deployment is not None and (caller := deployment.callers.named(what)) is not None:
            if self._usages.get(place) is not caller.usage:
                self._usages[place] = caller.usage
                in_flight, tokens = count.in_flight, count.tokens
            caller.usage.others_in_flight += in_flight
            caller.usage.others_reserved += tokens
            self._take_used(deployment, count, now)
        else:
            # Not known here yet: it counts from when it is told anew.
            self._counts.pop(place, None)
            if any(count.used):
                lately = count.lately or (0, 0, 0)
                known = tuple(used - new for used, new in zip(count.used, lately, strict=True))
                self._used.setdefault(count.where, (known[0], known[1], known[2]))

    def _take_used(self, deployment: DeploymentState, count: wire.PeerCount, now: float) -> None:
        before = self._used.get(count.where, (0, 0, 0))
        more = [after - earlier for after, earlier in zip(count.used, before, strict=True)]
        if count.lately is not None and count.where not in self._used:
            self._used[count.where] = count.used
            more = list(count.lately)
        if any(each > 0 for each in more):
            self._used[count.where] = count.used
            totals = Totals(*(max(each, 0) for each in more))
            caller = deployment.callers.named(count.where[2])
            if caller is not None:
                caller.usage.heard(totals, now)
                deployment.turns.heard(caller, totals.input_tokens, totals.output_tokens)

    def _pump(self) -> None:
        for deployment in self.fleet.deployments.values():
            deployment.turns.pump()
