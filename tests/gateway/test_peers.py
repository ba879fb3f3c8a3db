"""Several gateways before the same replicas: each knows what the others have in flight and what keys have used."""

import asyncio
import os
import signal
import subprocess
import sys

import msgspec
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_api import wire
from quire_gateway import peer_follow
from quire_gateway.config import BadConfig, GatewayConfig
from quire_gateway.fleet import Fleet
from quire_gateway.gateway import Gateway
from quire_gateway.limits import OverLimit, Permit
from quire_gateway.peer_follow import FORGET_AFTER_S, Peers
from quire_gateway.peers import Peer, changes, counts_of, snapshot_of

ASK = {"model": "m", "messages": [{"role": "user", "content": "w1 w2 w3"}]}
FOREVER_S = 1000.0
COUNTS = st.dictionaries(st.integers(0, 5), st.integers(1, 9))


def place(number):
    return "replica", ("n", "d", f"r{number}")


@settings(max_examples=100)
@given(COUNTS, COUNTS)
def test_who_knows_the_old_counts_and_the_changes_knows_the_new(before, after):
    old, new = (
        {place(n): wire.PeerCount(kind="replica", where=place(n)[1], in_flight=m) for n, m in counts.items()}
        for counts in (before, after)
    )
    known = dict(old)
    for count in changes(old, new):
        if count.in_flight:
            known[count.kind, count.where] = count
        else:
            known.pop((count.kind, count.where))
    assert known == new


async def test_a_key_that_left_the_table_and_came_back_keeps_its_limit():
    limits = wire.KeyLimits(concurrency=4)

    def table(*keys):
        entries = [wire.ApiKey(name=key, key=key, limits=limits) for key in keys]
        return wire.RoutingTable(
            deployments=[wire.Deployment(name="d", namespace="n", served_names=["m"], api_keys=entries)]
        )

    def usage(fleet):
        return fleet.deployments["n", "d"].callers.named("k").usage

    here, there = Fleet(), Fleet()
    peer, told = Peer(here), {}
    for fleet in (here, there):
        fleet.apply(table("k", "other"))

    def tell():
        after = counts_of(there)
        peer.apply(wire.PeerFrame(gateway="there", counts=changes(told, after)), 0.0)
        told.clear()
        told.update(after)

    held = [Permit(usage(there), limits, 0.0) for _ in range(4)]
    tell()
    assert usage(here).others_in_flight == 4
    # The other gateway saw only the last of these tables.
    here.apply(table("other"))
    here.apply(table("k", "other"))
    for permit in held[:2]:
        permit.end(1.0, was_served=True)
    tell()
    assert usage(here).others_in_flight == 2
    for permit in held[2:]:
        permit.end(1.0, was_served=True)
    tell()
    assert (usage(here).others_in_flight, usage(here).others_reserved) == (0, 0)
    for _ in range(4):
        Permit(usage(here), limits, 100.0)
    with pytest.raises(OverLimit):
        Permit(usage(here), limits, 100.0)


def table_of(*keys):
    deployment = wire.Deployment(
        name="d", namespace="n", served_names=["m"], api_keys=[wire.ApiKey(name=key, key=key) for key in keys]
    )
    return wire.RoutingTable(deployments=[deployment])


def told(gateway, *counts):
    return wire.PeerFrame(gateway=gateway, is_snapshot=True, counts=list(counts))


def used(key):
    return wire.PeerCount(kind="key", where=("n", "d", key), used=(1, 10, 10))


async def test_a_gateway_that_starts_counts_only_what_keys_used_within_the_minute():
    limits = wire.KeyLimits(requests_per_minute=10)
    table = table_of("k")
    table.deployments[0].limits = limits
    table.deployments[0].api_keys = [wire.ApiKey(name="k", key="k", limits=limits)]
    first, second, late = Fleet(), Fleet(), Fleet()
    for fleet in (first, second, late):
        fleet.apply(table)

    def usage(fleet):
        return fleet.deployments["n", "d"].callers.named("k").usage

    def use(fleet, now):
        permit = Permit(usage(fleet), limits, now)
        permit.take_tokens(3, 0, now)
        permit.end(now, was_served=True)

    hears = Peer(second)
    for number in range(100):  # two a minute
        use(first, number * 60.0)
        use(second, number * 60.0)
        hears.apply(wire.PeerFrame(gateway="first", counts=list(counts_of(first).values())), number * 60.0)
    now = 99 * 60.0 + 30.0
    for number, fleet in enumerate((first, second)):
        Peer(late).apply(told(str(number), *snapshot_of(fleet, now)), now)
    assert (usage(late).requests.total(now), usage(late).input_tokens.total(now)) == (2, 6)
    for _ in range(8):
        use(late, now)
    with pytest.raises(OverLimit):
        use(late, now)


async def test_a_peer_may_be_heard_before_the_table_comes():
    there, here = Fleet(), Fleet()
    there.apply(table_of("k"))
    usage, peer = there.deployments["n", "d"].callers.named("k").usage, Peer(here)
    for now in (0.0, 100.0, 200.0):
        Permit(usage, wire.KeyLimits(), now).end(now, was_served=True)
    peer.apply(told("there", *snapshot_of(there, 200.0)), 200.0)
    here.apply(table_of("k"))
    Permit(usage, wire.KeyLimits(), 201.0).end(201.0, was_served=True)
    peer.apply(wire.PeerFrame(gateway="there", counts=list(counts_of(there).values())), 201.0)
    assert here.deployments["n", "d"].callers.named("k").usage.requests.total(201.0) == 2


async def test_who_hears_a_second_snapshot_counts_only_what_is_new():
    there, here = Fleet(), Fleet()
    for fleet in (there, here):
        fleet.apply(table_of("k"))
    usage, peer = there.deployments["n", "d"].callers.named("k").usage, Peer(here)
    for number in range(3):
        Permit(usage, wire.KeyLimits(), 10.0 + number).end(10.0 + number, was_served=True)
        peer.apply(told("there", *snapshot_of(there, 10.0 + number)), 10.0 + number)
        peer.lost()
    assert here.deployments["n", "d"].callers.named("k").usage.requests.total(13.0) == 3


async def test_gateways_that_are_long_gone_are_forgotten_and_those_that_may_come_back_are_not():
    peers, now = Peers(Fleet(), [], ""), asyncio.get_running_loop().time()
    for number in range(100):
        peers.heard(told(f"start {number}"), now)
        peers.lost(f"start {number}")
    peers.heard(told("back"), now)
    peers.lost("back")
    peers.heard(told("back"), now)
    peers.forget(now + 1.0)
    assert len(peers._known) == 101
    peers.forget(now + 2 * FORGET_AFTER_S)
    assert peers._known.keys() == {"back"}


async def test_what_peers_told_of_keys_that_left_the_table_is_forgotten():
    fleet = Fleet()
    fleet.apply(table_of("a", "b"))
    peer = Peer(fleet)
    peer.apply(told("there", used("a"), used("b")), 0.0)
    usage = fleet.deployments["n", "d"].callers.named("b").usage
    fleet.apply(table_of("b"))
    for _ in range(2):
        peer.forget()
    assert peer._used.keys() == {("n", "d", "b")}
    assert peer._usages.keys() == {("key", ("n", "d", "b"))}
    # What stays is not counted twice.
    peer.apply(told("there", used("b")), 1.0)
    assert usage.requests.total(1.0) == 1
    fleet.apply(wire.RoutingTable())
    for _ in range(2):
        peer.forget()
    assert (peer._used, peer._usages) == ({}, {})


async def test_a_key_that_leaves_the_table_for_a_moment_is_not_forgotten():
    fleet = Fleet()
    fleet.apply(table_of("a"))
    peer = Peer(fleet)
    peer.apply(told("there", used("a")), 0.0)
    fleet.apply(wire.RoutingTable())
    peer.forget()
    fleet.apply(table_of("a"))
    peer.forget()
    peer.apply(told("there", used("a")), 1.0)
    assert fleet.deployments["n", "d"].callers.named("a").usage.requests.total(1.0) == 0


async def test_what_peers_have_at_deployments_that_are_gone_is_forgotten_with_its_end():
    fleet = Fleet()
    fleet.apply(table_of("a"))
    peer = Peer(fleet)
    at = wire.PeerCount(kind="replica", where=("n", "d", "r"), in_flight=2)
    peer.apply(told("there", at), 0.0)
    fleet.apply(wire.RoutingTable())
    assert fleet.others == {("n", "d"): {"r": (2, 0)}}, "it is still there, and the deployment may come back"
    peer.apply(told("there"), 1.0)
    assert fleet.others == {}
    fleet.apply(table_of("a"))
    fleet.apply(wire.RoutingTable())
    assert fleet.others == {}
    peer.apply(told("there", at), 2.0)
    fleet.apply(table_of("a"))
    assert fleet.deployments["n", "d"].others_at("r") == (2, 0)


async def test_a_key_that_left_the_table_has_no_account_of_its_turns():
    fleet = Fleet()
    fleet.apply(table_of("a", "b"))
    deployment = fleet.deployments["n", "d"]
    for key in "ab":
        deployment.turns.heard(deployment.callers.named(key), 100, 0)
    fleet.apply(table_of("b"))
    assert deployment.turns._queue._counters == {"b": 100.0}


async def test_a_peer_that_refuses_is_asked_less_and_less_often_and_told_of_once(caplog, monkeypatch):
    asked, pauses, keys = asyncio.Semaphore(0), [], {"status": b"401"}

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = b"" if keys["status"] == b"401" else msgspec.json.encode(told("there")) + b"\n"
        writer.write(b"HTTP/1.1 %b X\r\ncontent-length: %d\r\n\r\n%b" % (keys["status"], len(body), body))
        writer.close()
        asked.release()

    async def pause(seconds, sleep=asyncio.sleep):
        pauses.append(seconds)
        await sleep(seconds / 100)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    peers = Peers(Fleet(), [f"127.0.0.1:{port}"], "another key")
    monkeypatch.setattr(peer_follow, "FIND_EVERY_S", 100.0)
    monkeypatch.setattr(asyncio, "sleep", pause)
    peers.start()
    async with asyncio.timeout(60):
        for _ in range(8):
            await asked.acquire()
        refused = [each for each in pauses if each != 100.0]
        keys["status"] = b"200"
        while "there" not in peers._known:
            await asked.acquire()
    await peers.close()
    server.close()
    assert refused[:5] == [0.5, 1.0, 2.0, 4.0, 5.0]
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "the same internal key" in line


@pytest.mark.parametrize("peers", ["x", "x:", ":80", "x:y", "x:99999", "a:1,b"])
async def test_names_that_cannot_be_understood_are_refused(peers, tmp_path):
    with pytest.raises(BadConfig, match="HOST:PORT"):
        Gateway(GatewayConfig(routing_table=tmp_path / "t", access_log="", peers=peers))


@pytest.fixture
async def make_pair(make_world, unused_tcp_port_factory):
    """Two gateways that know each other, behind one table."""
    ports = [unused_tcp_port_factory() for _ in range(2)]
    peers = ",".join(f"127.0.0.1:{port}" for port in ports)
    others = []

    async def make(*args, **config):
        config |= {"peers": peers, "internal_key": "inner"}
        world = await make_world(*args, port=ports[0], **config)
        settings = {"port": ports[1], "routing_table": world.table_path, "access_log": "", **config}
        other = Gateway(GatewayConfig(**settings))
        others.append(other)
        await other.start()
        await world.until(lambda: sum(each.is_candidate for each in other.fleet.replicas()) == len(world.engines))
        await world.until(lambda: other.peers.listening and world.gateway.peers.listening)
        return world, other

    yield make
    for other in others:
        await other.close()


def client(gateway, key="none"):
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=60.0)


async def ask(gateway, key="none"):
    return await client(gateway, key).chat.completions.with_raw_response.create(**ASK)


async def test_each_counts_what_the_other_has_in_flight_until_it_ends(make_pair):
    world, other = await make_pair(2)
    for engine in world.engines.values():
        engine.first_delay_s = FOREVER_S
    asking = [asyncio.ensure_future(ask(world.gateway)) for _ in range(2)]
    mine, theirs = world.gateway.fleet.serving("m"), other.fleet.serving("m")
    await world.until(lambda: sum(each[0] for each in theirs.others.values()) == 2)
    assert mine.others == {}
    assert sum(each[1] for each in theirs.others.values()) > 0
    for each in asking:
        each.cancel()
    await world.until(lambda: theirs.others == {})


async def test_a_request_goes_where_neither_gateway_has_one(make_pair):
    world, other = await make_pair(2)
    for engine in world.engines.values():
        engine.first_delay_s = FOREVER_S
    asking = [asyncio.ensure_future(ask(world.gateway))]
    await world.until(lambda: other.fleet.serving("m").others)
    asking.append(asyncio.ensure_future(ask(other)))
    await world.until(lambda: [len(engine.seen) for engine in world.engines.values()] == [1, 1])
    for each in asking:
        each.cancel()


async def test_together_they_give_a_replica_no_more_than_it_can_work_on(make_pair):
    world, other = await make_pair(1, max_in_flight_per_replica=1)
    engine = world.engines["r0"]
    engine.first_delay_s = FOREVER_S
    first = asyncio.ensure_future(ask(world.gateway))
    theirs = other.fleet.serving("m")
    await world.until(lambda: theirs.others)
    second = asyncio.ensure_future(ask(other))
    await world.until(lambda: len(theirs.turns) == 1)
    engine.first_delay_s = 0.0
    first.cancel()
    assert (await second).headers["x-quire-queue-position"] == "1"


async def test_a_keys_limits_hold_over_both(make_pair):
    key = wire.ApiKey(name="alice", key="sk", limits=wire.KeyLimits(requests_per_minute=2, concurrency=1))
    world, other = await make_pair(1, {"api_keys": [key]})
    theirs = other.fleet.serving("m").callers.named("alice").usage
    mine = world.gateway.fleet.serving("m").callers.named("alice").usage
    loop = asyncio.get_running_loop()
    await ask(world.gateway, "sk")
    await world.until(lambda: (theirs.requests.total(loop.time()), theirs.others_in_flight) == (1, 0))
    await ask(other, "sk")
    await world.until(lambda: (mine.requests.total(loop.time()), mine.others_in_flight) == (2, 0))
    for gateway in (world.gateway, other):
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(gateway, "sk")
        assert caught.value.code == "request_limit"


async def test_its_counts_need_the_internal_key(make_pair):
    world, _ = await make_pair(1)
    async with world.http() as http:
        assert (await http.get("/internal/v1/peers")).status_code == 401


async def test_a_gateway_alone_listens_to_nobody_not_to_itself_either(make_world, unused_tcp_port):
    world = await make_world(1, port=unused_tcp_port, peers=f"localhost:{unused_tcp_port}")
    await world.until(lambda: world.gateway.peers._selves)
    await ask(world.gateway)
    assert not world.gateway.peers.listening
    assert world.gateway.fleet.serving("m").others == {}


async def test_a_name_that_is_none_in_dns_does_not_keep_the_others_unfound(make_world, unused_tcp_port):
    world = await make_world(1, port=unused_tcp_port, peers=f"quire..peers:80,localhost:{unused_tcp_port}")
    await world.until(lambda: world.gateway.peers._selves)


async def test_a_gateway_killed_is_forgotten_and_one_started_is_heard(make_world, unused_tcp_port_factory):
    ports = [unused_tcp_port_factory() for _ in range(2)]
    peers = ",".join(f"127.0.0.1:{port}" for port in ports)
    world = await make_world(1, port=ports[0], peers=peers, internal_key="inner")
    deployment = world.gateway.fleet.serving("m")
    flags = ["--routing-table", str(world.table_path), "--port", str(ports[1]), "--peers", peers, "--access-log", ""]

    async def start():
        process = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, "-m", "quire_gateway", *flags],
            env={**os.environ, "QUIRE_INTERNAL_KEY": "inner"},
            stderr=subprocess.DEVNULL,
        )
        await world.until(lambda: world.gateway.peers.listening)
        return process

    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{ports[1]}/v1", api_key="x", max_retries=0, timeout=60.0)
    process = await start()
    try:
        world.engines["r0"].first_delay_s = FOREVER_S
        asking = [asyncio.ensure_future(client.chat.completions.create(**ASK)) for _ in range(3)]
        await world.until(lambda: deployment.others.get("r0", (0, 0))[0] == 3)
        process.send_signal(signal.SIGKILL)
        await world.until(lambda: deployment.others == {} and not world.gateway.peers.listening)
        await asyncio.gather(*asking, return_exceptions=True)
        world.engines["r0"].first_delay_s = 0.0
        await ask(world.gateway)
        process.wait()
        process = await start()
        assert (await client.chat.completions.create(**ASK)).choices
    finally:
        process.kill()
        process.wait()
