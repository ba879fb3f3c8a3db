"""Gateways on real sockets: what is made of their answers, and when somebody is told."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from quire_api import wire
from quire_api.connection import Connection
from quire_operator import gateways as module
from quire_operator.gateways import Gateways, words_of
from quire_operator.kube import Kube
from quire_operator.world import Key

DEADLINE_S = 60.0
TINY = Key("models", "tiny")


def report(
    *, routable: bool = True, in_flight: int = 0, model: wire.ModelInfo | None = None, reason: str = ""
) -> bytes:
    replica = wire.ReplicaReport(
        deployment="tiny",
        namespace="models",
        replica="a",
        is_routable=routable,
        in_flight=in_flight,
        model=model,
        reason=reason,
    )
    return msgspec.json.encode(wire.GatewayReport(replicas=[replica]))


class Gateway:
    """Answers with `content`, or not at all where there is none."""

    def __init__(self) -> None:
        self.content: bytes | None = report()
        self._asked: asyncio.Queue[None] = asyncio.Queue()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self._asked.put_nowait(None)
        return web.Response(body=self.content) if self.content is not None else web.Response(status=503)

    async def rounds(self, count: int) -> None:
        """Let it be asked so many times more, and the answers be taken in."""
        while not self._asked.empty():
            self._asked.get_nowait()
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(count + 1):
                await self._asked.get()


@pytest.fixture
async def one() -> Gateway:
    return Gateway()


@pytest.fixture
def told() -> list[set[Key]]:
    return []


@pytest.fixture
async def gateways(one, told, monkeypatch) -> AsyncIterator[Gateways]:
    monkeypatch.setattr(module, "ASK_EVERY_S", 0.01)
    monkeypatch.setattr(module, "FORGET_AFTER_S", 0.3)
    kube = Kube(Connection("http://127.0.0.1:1"))
    async with RawTestServer(one.answer) as server:
        gateways = Gateways(
            kube,
            lambda keys: told.append(set(keys)),
            namespace="quire-system",
            labels={},
            port=0,
            internal_key="",
            addresses=[str(server.make_url("")).rstrip("/")],
        )
        asking = asyncio.create_task(gateways.run())
        yield gateways
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await gateways.close()
        await kube.close()


async def test_the_first_gateway_is_told_to_everybody_and_the_same_answer_again_to_nobody(gateways, one, told):
    await one.rounds(2)
    words = gateways.words
    assert told == [set()]
    assert words[TINY]["a"].is_routable
    await one.rounds(5)
    assert told == [set()]
    assert gateways.words is words


async def test_what_changes_is_told_to_its_deployment(gateways, one, told):
    await one.rounds(2)
    one.content = report(routable=False)
    await one.rounds(2)
    assert told[1:] == [{TINY}]
    assert not gateways.words[TINY]["a"].is_routable


async def test_requests_in_flight_are_known_though_nobody_is_told(gateways, one, told):
    await one.rounds(2)
    one.content = report(in_flight=7)
    await one.rounds(2)
    assert gateways.words[TINY]["a"].in_flight == 7
    assert told == [set()]


async def test_a_gateway_that_falls_silent_is_forgotten_and_heard_again_with_the_very_same_answer(gateways, one, told):
    await one.rounds(2)
    one.content = None
    async with asyncio.timeout(DEADLINE_S):
        while gateways.count:
            await one.rounds(1)
    assert gateways.words == {}
    one.content = report()
    await one.rounds(2)
    assert gateways.count == 1
    assert gateways.words[TINY]["a"].is_routable
    assert told == [set(), set(), set()]


def model(length: int) -> wire.ModelInfo:
    return wire.ModelInfo(
        served_names=["tiny"],
        model_revision="r",
        block_size=16,
        block_format=1,
        max_model_len=length,
        tokenizer_digest="d",
        kv_capacity_tokens=1,
        max_num_seqs=1,
        engine_epoch="e",
    )


async def test_facts_are_those_of_replicas_that_are_reported_and_no_others(gateways, one):
    one.content = report(model=model(512))
    await one.rounds(2)
    assert gateways.facts[TINY]["a"].context_length == 512
    one.content = report()
    await one.rounds(2)
    assert gateways.facts == {}


async def test_an_engine_that_tells_nonsense_of_its_model_ends_nothing(gateways, one):
    one.content = report(model=model(-1))
    await one.rounds(2)
    assert gateways.words[TINY]["a"].is_routable


EJECTED = report(routable=False, reason="Ejected: connection refused")


async def test_a_replica_that_no_gateway_reaches_for_a_while_is_lost_until_one_does(gateways, one, told, monkeypatch):
    monkeypatch.setattr(module, "LOST_AFTER_S", 0.1)
    await one.rounds(2)
    one.content = EJECTED
    await one.rounds(2)
    async with asyncio.timeout(DEADLINE_S):
        while not gateways.words[TINY]["a"].is_lost:
            await one.rounds(1)
    # That it gets nothing, and later that it is lost.
    assert told[1:] == [{TINY}, {TINY}]
    await one.rounds(5)
    assert len(told) == 3
    one.content = report()
    await one.rounds(2)
    assert not gateways.words[TINY]["a"].is_lost


@pytest.mark.parametrize("reason", ["Starting: not probed yet", "Warming: it computes", "Draining"])
async def test_a_replica_that_gets_nothing_for_a_reason_is_not_lost(gateways, one, monkeypatch, reason):
    monkeypatch.setattr(module, "LOST_AFTER_S", 0.0)
    one.content = report(routable=False, reason=reason)
    await one.rounds(3)
    assert not gateways.words[TINY]["a"].is_lost
    one.content = EJECTED
    await one.rounds(2)
    assert gateways.words[TINY]["a"].is_lost


def test_a_replica_that_one_of_two_gateways_reaches_is_not_failing():
    reports = [msgspec.json.decode(content, type=wire.GatewayReport) for content in (EJECTED, report(), EJECTED)]
    assert not words_of(reports)[TINY]["a"].is_failing
    assert words_of(reports[::2])[TINY]["a"].is_failing
