"""HTTP/1.1 on the raw socket: framing, limits, pipelining, and what a smuggler would try."""

import asyncio
import re

import pytest
import uvloop

from quire_gateway.reply import Reply
from quire_gateway.server import Limits, Server

BODY = b'{"model": "m", "prompt": "w1"}'


def post(body=BODY, *headers, path=b"/v1/completions"):
    lines = [b"POST " + path + b" HTTP/1.1", b"host: x", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def talk(world, data, *, parts=1):
    """All that comes back until the gateway closes; `data` is sent in so many parts."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    step = -(-len(data) // parts)
    for start in range(0, len(data), step):
        writer.write(data[start : start + step])
        await writer.drain()
        if parts > 1:
            await asyncio.sleep(0)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


def statuses(answer):
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d+)", answer)]


GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("parts", [1, 7, 400])
async def test_pipelined_requests_are_answered_in_order(world, parts):
    world.engines["r0"].first_delay_s = 0.1
    answer = await talk(world, post() + GET + post(b"{") + post() + LAST, parts=parts)
    assert statuses(answer) == [200, 200, 400, 200, 200]


async def test_a_target_with_scheme_and_host_is_the_path_behind_them(world):
    whole = [b"http://x/health", b"HTTP://x:80/v1/models?a=http://y/z", b"http://x?a", b"/v1/http://x/health"]
    asked = b"".join(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % target for target in whole)
    assert statuses(await talk(world, asked + LAST)) == [200, 200, 404, 404, 200]


async def test_a_hundred_pipelined_requests_all_get_their_answer(world):
    assert statuses(await talk(world, GET * 100 + LAST)) == [200] * 101


async def half_close(world, data):
    """All that comes back to who sends `data` and closes its side."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("number", [1, 3, 100])
async def test_who_closes_its_side_is_answered_what_needs_no_replica(world, number):
    assert statuses(await half_close(world, GET * number)) == [200] * number


async def test_who_closes_its_side_half_way_through_a_request_gets_what_came_before(world):
    assert statuses(await half_close(world, GET * 2 + post()[:-3])) == [200, 200]
    assert await half_close(world, b"") == b""


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_no_replica_works_for_who_has_closed_its_side(make_world, is_streamed):
    world = await make_world(1)
    world.engines["r0"].first_delay_s = 1000.0
    body = b'{"model": "m", "prompt": "w1", "stream": %s}' % (b"true" if is_streamed else b"false")
    assert statuses(await half_close(world, GET + post(body))) == [200]
    await world.until(world.is_quiet)
    await world.until(lambda: world.engines["r0"].hung_up == len(world.engines["r0"].seen))


async def test_chunked_request_bodies(world):
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:5], BODY[5:9], BODY[9:]))
    answer = await talk(world, head + chunks + b"0\r\ntrailer: x\r\n\r\n", parts=60)
    assert statuses(answer) == [200]
    (seen,) = [seen for engine in world.engines.values() for seen in engine.seen]
    assert seen.body == BODY
    assert "transfer-encoding" not in seen.headers
    assert "trailer" not in seen.headers


@pytest.mark.parametrize(
    "request_head",
    [
        b"host: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked",
        b"host: x\r\ntransfer-encoding: chunked\r\ncontent-length: 4",
        b"host: x\r\ncontent-length: 4\r\ncontent-length: 5",
        b"host: x\r\ncontent-length: +4",
        b"host: x\r\ncontent-length: -1",
        b"host: x\r\ncontent-length: 4, 4",
        b"host: x\r\ncontent-length: 99999999999999999999",
        b"host: x\r\ntransfer-encoding: gzip, chunked",
        b"host: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked",
        b"host: x\r\ntransfer-encoding: xchunked",
        b"host: x\r\ntransfer-encoding : chunked",
        b"host: x\r\nbad header: 1",
        b"host: x\r\nname: a\x00b",
        b"host: x\r\nname: a\r\n folded: b",
        b"host: x\r\nhost: y\r\ncontent-length: 4",
        b"content-length: 4",
    ],
)
async def test_ambiguous_or_malformed_heads_are_400_and_reach_no_replica(world, request_head):
    answer = await talk(world, b"POST /v1/completions HTTP/1.1\r\n" + request_head + b"\r\n\r\n0\r\n\r\n" + post())
    assert statuses(answer)[:1] == [400]
    assert len(statuses(answer)) == 1
    assert b"malformed_http" in answer
    assert not any(engine.seen for engine in world.engines.values())


@pytest.mark.parametrize(
    "chunks", [b"zz\r\n", b"-1\r\n", b"5\r\nabc", b"3\r\nabcX", b"3\nabc\r\n", b"fffffffffffffffff\r\n"]
)
async def test_bad_chunking_is_400(world, chunks):
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = await talk(world, head + chunks + b"0\r\n\r\n" * 3)
    assert statuses(answer) == [400]


@pytest.mark.parametrize("noise", [b"\x16\x03\x01\x02\x00", b"\x00" * 100, b"HELO x\r\n", b"GET / HTTP/9.9\r\n\r\n"])
async def test_what_is_not_http_is_refused_and_neighbours_are_unharmed(world, noise):
    async with world.http() as http:
        await http.get("/health")
        assert statuses(await talk(world, noise)) == [400]
        assert (await http.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "bomb",
    [
        b"GET /health HTTP/1.1\r\nhost: x\r\n"
        + b"".join(b"h%d: %b\r\n" % (n, b"v" * 1000) for n in range(50))
        + b"\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nlong: " + b"v" * 50_000,
        b"GET /" + b"v" * 50_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
async def test_header_bombs_are_431(make_world, bomb):
    world = await make_world(0, max_header_bytes=8192)
    assert statuses(await talk(world, bomb, parts=20)) == [431]


async def test_chunk_extension_bombs_are_refused(make_world):
    world = await make_world(0, max_header_bytes=8192)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    assert statuses(await talk(world, head + b"1;" + b"e" * 600_000, parts=3)) == [431]


async def test_expect_100_continue_is_answered_before_the_body(world):
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    head, _, body = post(BODY, b"expect: 100-continue", b"connection: close").partition(b"\r\n\r\n")
    writer.write(head + b"\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert statuses(await reader.read()) == [200]
    (seen,) = [seen for engine in world.engines.values() for seen in engine.seen]
    assert "expect" not in seen.headers
    writer.close()


async def test_expect_with_a_body_over_the_limit_is_refused_before_the_body(make_world):
    world = await make_world(0, max_body_bytes=10)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n"
    assert statuses(await talk(world, head)) == [413]


async def test_http_1_0_gets_an_unchunked_answer_and_a_closed_connection(world):
    body = b'{"model": "m", "prompt": "w1", "stream": true}'
    answer = await talk(world, b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    assert statuses(answer) == [200]
    assert b"transfer-encoding" not in answer
    assert answer.endswith(b"data: [DONE]\n\n")


async def test_an_offered_upgrade_is_ignored(world):
    upgrade = [b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABk"]
    for parts in (1, 30):
        answer = await talk(world, post(BODY, *upgrade) + LAST, parts=parts)
        assert statuses(answer) == [200, 200]
    assert [seen.body for engine in world.engines.values() for seen in engine.seen] == [BODY, BODY]


async def test_connect_is_refused(world):
    assert statuses(await talk(world, b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\nbytes")) == [405]


async def test_a_refused_connection_still_answers_what_came_before(world):
    world.engines["r0"].first_delay_s = world.engines["r1"].first_delay_s = 0.2
    answer = await talk(world, post() + b"BAD\r\n\r\n")
    assert statuses(answer) == [200, 400]


def test_writing_to_a_client_that_has_just_gone_does_nothing():
    ended: list[str] = []

    class Client(asyncio.Protocol):
        def connection_made(self, transport):
            how = {"is_old": False, "is_head": False, "keeps_alive": True, "is_paused": False}
            self.streamed = Reply(transport, **how, on_end=lambda: ended.append("streamed"))
            self.whole = Reply(transport, **how, on_end=lambda: ended.append("whole"))
            self.streamed.start(200, [])
            self.streamed.write(b"one")
            transport.abort()

        def connection_lost(self, exc):
            # A replica's bytes may come before the request's task has been cancelled.
            asyncio.get_running_loop().call_soon(self.late)

        def late(self):
            self.streamed.write(b"two")
            self.streamed.end()
            self.whole.send(200, [], b"late")
            ended.append("all")

    async def scene():
        loop = asyncio.get_running_loop()
        problems = []
        loop.set_exception_handler(lambda _, context: problems.append(context))
        listener = await loop.create_server(Client, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        async with asyncio.timeout(60):
            while not problems and "all" not in ended:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        writer.close()
        listener.close()
        assert not problems

    uvloop.run(scene())
    assert ended == ["streamed", "whole", "all"]


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"HELO x\r\n", 400, "malformed_http"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed_http"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nlong: " + b"v" * 9000 + b"\r\n\r\n", 431, "headers_too_large"),
        (post(b"x" * 200), 413, "body_too_large"),
        (b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n", 405, "method_not_allowed"),
    ],
)
async def test_what_was_no_whole_request_is_counted_by_reason(make_world, data, code, reason):
    world = await make_world(0, max_header_bytes=8192, max_body_bytes=100)
    for _ in range(2):
        assert statuses(await talk(world, data)) == [code]
    async with world.http() as http:
        lines = (await http.get("/metrics")).text.splitlines()
    nobody = 'deployment="",namespace=""'
    assert f'quire_gateway_refusals_total{{{nobody},reason="{reason}"}} 2.0' in lines
    assert f'quire_gateway_requests_total{{code="{code}",{nobody}}} 2.0' in lines
    logged = [(line["status"], line["outcome"], line["detail"], line["peer"]) for line in world.log_lines()]
    assert logged == [(code, "refused", reason, "127.0.0.1")] * 2
    told = ("", "") if data.startswith(b"HELO") else tuple(data.decode().split(" ")[:2])
    assert {(line["method"], line["path"]) for line in world.log_lines()} == {told}


async def served(limits, takes_s=0.0, on_refused=lambda *_: None):
    """A server of these limits whose answers take so long, and a connection to it."""

    async def handler(request, reply):
        await asyncio.sleep(takes_s)
        reply.send(200, [], b"ok")

    server = Server(handler, limits, on_refused)
    port = await server.start("127.0.0.1", 0)
    return server, *await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("part", [GET[:9], post()[:-5]], ids=["head", "body"])
async def test_a_request_that_stops_half_way_is_told_so_whatever_came_before(before, part):
    limits = Limits(header_timeout_s=2.0, body_timeout_s=2.0, keep_alive_s=1000.0)
    refused = []
    server, reader, writer = await served(limits, on_refused=lambda *told: refused.append(told))
    writer.write(GET * before + part)
    async with asyncio.timeout(60):
        assert statuses(await reader.read()) == [200] * before + [408]
    assert [refusal.code for refusal, *_ in refused] == ["request_timeout"]
    writer.close()
    server.close_when_idle()


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\nhost: x\r\nlong: ", b"GET /"], ids=["header", "path"])
@pytest.mark.parametrize("before", [GET, post(b"x" * 3000)], ids=["bodiless", "body"])
async def test_a_head_that_is_too_large_is_told_so_though_it_came_with_the_request_before_it(head, before):
    limits = Limits(header_bytes=1000)
    server, reader, writer = await served(limits)
    # The first of these requests has begun when the rest comes.
    writer.write(before[:10])
    await asyncio.sleep(0.1)
    writer.write(before[10:] + head + b"v" * 2000)
    async with asyncio.timeout(20):
        assert statuses(await reader.read()) == [200, 431]
    writer.close()
    server.close_when_idle()


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\nhost: x\r\nlong: ", b"GET /"], ids=["header", "path"])
async def test_a_head_that_is_too_large_is_told_so_though_it_came_in_one_piece(head):
    limits = Limits(header_bytes=1000, header_timeout_s=2.0)
    for before in (b"", GET):
        server, reader, writer = await served(limits)
        writer.write(before)
        async with asyncio.timeout(60):
            if before:
                await reader.readuntil(b"ok")
            writer.write(head + b"v" * 2000)
            assert statuses(await reader.read()) == [431]
        writer.close()
        server.close_when_idle()


async def test_an_idle_connection_is_closed_and_an_answer_under_way_is_not_cut():
    limits = Limits(header_timeout_s=2.0, body_timeout_s=2.0, keep_alive_s=2.0)
    server, reader, writer = await served(limits, takes_s=3.0)
    writer.write(post() + GET)
    async with asyncio.timeout(60):
        assert statuses(await reader.read()) == [200, 200]
    writer.close()
    server.close_when_idle()
