"""Gateways that listen to one another: each asks every other for its counts and keeps that stream open.

No store stands between them: a gateway that starts finds its peers by name or address and begins with their snapshots;
one that dies is forgotten with its connection, or after `SILENCE_S`.
"""

import asyncio
import logging
import socket
from collections.abc import Sequence

import msgspec

from quire_api import wire
from quire_gateway.fleet import Fleet
from quire_gateway.health import internal_headers
from quire_gateway.keep import keep_going
from quire_gateway.peers import Peer, changes, counts_of, snapshot_of
from quire_gateway.reply import Reply
from quire_gateway.request import Headers
from quire_gateway.upstream import UpstreamConnection, UpstreamFailure, UpstreamPool, request_bytes

log = logging.getLogger(__name__)

PATH = "/internal/v1/peers"
TELL_EVERY_S = 0.025
HEARTBEAT_S = 0.5
SILENCE_S = 1.5
FIND_EVERY_S = 1.0
FORGET_AFTER_S = 600.0
_AGAIN_S = 0.25
_LONGEST_AGAIN_S = 5.0
_LONGEST_LINE = 16 << 20


class Peers:
    """This gateway's side of it all: tells who asks, and asks everybody it finds.

    names: HOST:PORT of the others, this one may be among them; a name stands for all its addresses.
    """

    def __init__(self, fleet: Fleet, names: Sequence[str], internal_key: str) -> None:
        self._fleet = fleet
        self._names = [name for name in names if name]
        self._headers = internal_headers(internal_key)
        self._known: dict[str, Peer] = {}
        """By the gateway's id, which changes with its every start."""
        self._lost_at: dict[str, float] = {}
        self._forgot_at = 0.0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._selves: set[str] = set()
        self._finding: asyncio.Task[None] | None = None
        self._is_closing = False
        self.listening: set[str] = set()
        """Ids of the gateways whose counts are known now."""

    def start(self) -> None:
        if self._names:
            self._finding = asyncio.create_task(keep_going("finding peers", self._find_for_ever))

    async def close(self) -> None:
        """Ask no more, and end the streams of who asked."""
        self._is_closing = True
        tasks = [*self._tasks.values(), *([self._finding] if self._finding else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stop_telling(self) -> None:
        """End the streams of who asked: this gateway has nothing more to tell."""
        self._is_closing = True

    async def tell(self, reply: Reply) -> None:
        """Write this gateway's counts to `reply`, and go on until the asker is gone."""
        loop = asyncio.get_running_loop()
        reply.start(200, [(b"content-type", b"application/jsonlines")])
        before = counts_of(self._fleet)
        snapshot = snapshot_of(self._fleet, loop.time())
        frame = wire.PeerFrame(gateway=self._fleet.id, is_snapshot=True, counts=snapshot)
        told_at = loop.time()
        while not self._is_closing:
            if frame.is_snapshot or frame.counts or loop.time() - told_at >= HEARTBEAT_S:
                reply.write(msgspec.json.encode(frame) + b"\n")
                told_at = loop.time()
            await asyncio.sleep(TELL_EVERY_S)
            after = counts_of(self._fleet)
            frame = wire.PeerFrame(gateway=self._fleet.id, counts=changes(before, after))
            before = after
        reply.end()

    async def _find_for_ever(self) -> None:
        while True:
            found: set[str] = set()
            is_sure = True
            for name in self._names:
                try:
                    found |= await _addresses(name)
                except (OSError, UnicodeError) as error:  # the latter: a name that is none in DNS
                    is_sure = False
                    log.debug("peer %s: %s", name, error)
            for address in found - self._tasks.keys() - self._selves:
                self._tasks[address] = asyncio.create_task(self._follow(address))
            for address in list(self._tasks):
                if self._tasks[address].done() or (is_sure and address not in found):
                    self._tasks.pop(address).cancel()
            # An address may have gone to another gateway.
            self._selves &= found
            self.forget(asyncio.get_running_loop().time())
            await asyncio.sleep(FIND_EVERY_S)

    async def _follow(self, address: str) -> None:
        pool = UpstreamPool(address)
        trouble, again_s = "", _AGAIN_S
        while True:
            try:
                connection = await pool.open()
            except UpstreamFailure as failure:
                log.debug("peer %s: %s", address, failure)
                trouble = ""
            else:
                stream = _Stream(self)
                try:
                    connection.ask(request_bytes("GET", PATH, pool.authority, self._headers, b""), stream)
                    await self._listen(stream, connection)
                finally:
                    connection.close()
                    stream.close()
                if stream.gateway == self._fleet.id:
                    self._selves.add(address)
                    return
                if stream.trouble and stream.trouble != trouble:
                    log.warning("peer %s: %s", address, stream.trouble)
                trouble = stream.trouble
            # What is refused or cannot be read now will mostly be so again.
            again_s = min(2 * again_s, _LONGEST_AGAIN_S) if trouble else _AGAIN_S
            await asyncio.sleep(again_s)

    async def _listen(self, stream: "_Stream", connection: UpstreamConnection) -> None:
        loop = asyncio.get_running_loop()
        while not stream.ended.done() and loop.time() - stream.heard_at <= SILENCE_S:
            await asyncio.wait({stream.ended}, timeout=SILENCE_S / 6)

    def heard(self, frame: wire.PeerFrame, now: float) -> None:
        """A frame of another gateway has come."""
        peer = self._known.setdefault(frame.gateway, Peer(self._fleet))
        self.listening.add(frame.gateway)
        self._lost_at.pop(frame.gateway, None)
        peer.apply(frame, now)

    def lost(self, gateway: str) -> None:
        """Its stream has ended."""
        self.listening.discard(gateway)
        if gateway in self._known:
            self._known[gateway].lost()
            self._lost_at[gateway] = asyncio.get_running_loop().time()

    def forget(self, now: float) -> None:
        """Drop gateways that have long been gone, as each start makes a new one, and keys that no table has."""
        for gateway in [gateway for gateway, at in self._lost_at.items() if now - at > FORGET_AFTER_S]:
            del self._known[gateway], self._lost_at[gateway]
        if now - self._forgot_at > FORGET_AFTER_S:
            self._forgot_at = now
            for peer in self._known.values():
                peer.forget()


class _Stream:
    """The sink of one peer's stream."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self.gateway = ""
        self.trouble = ""
        """Why it cannot be listened to, as long as nothing is changed."""
        self.heard_at = self._loop.time()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def on_head(self, status: int, headers: Headers) -> None:
        if status != 200:
            self.trouble = f"it answered {status} to {PATH}; give all gateways the same internal key and version"
            self._end()

    def on_body(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            for line in lines:
                if self.ended.done():
                    return
                frame = msgspec.json.decode(line, type=wire.PeerFrame)
                self.gateway = frame.gateway
                if frame.gateway == self._peers._fleet.id:
                    self._end()
                else:
                    self._peers.heard(frame, self.heard_at)
        except msgspec.MsgspecError as error:
            self.trouble = f"its counts cannot be read: {error}; give all gateways the same version"
            self._end()
        if len(self._rest) > _LONGEST_LINE:
            self._end()

    def on_end(self) -> None:
        self._end()

    def on_failure(self, failure: UpstreamFailure) -> None:
        self._end()

    def close(self) -> None:
        """Forget what it told."""
        self._end()
        if self.gateway and self.gateway != self._peers._fleet.id:
            self._peers.lost(self.gateway)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def _addresses(name: str) -> set[str]:
    """http://ADDRESS:PORT for every address of HOST:PORT."""
    host, _, port = name.rpartition(":")
    found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    return {f"http://{f'[{each[0]}]' if ':' in str(each[0]) else each[0]}:{port}" for *_, each in found}
