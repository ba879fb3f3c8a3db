"""Connections to a replica, shared by its requests and the gateway's own questions."""

import asyncio
import socket
import time

import httptools
import pytest

from quire_gateway.load import Pace
from quire_gateway.pulse import Pulse
from quire_gateway.relay import End, Relay
from quire_gateway.replay import Record
from quire_gateway.reply import Reply
from quire_gateway.upstream import UpstreamConnection, UpstreamFailure, UpstreamPool, _Buffer, request_bytes

DEADLINE_S = 60.0
ANSWERS = {
    b"/busy": b"HTTP/1.1 503 X\r\ncontent-length: 2\r\n\r\nno",
    b"/torn": b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\nx-quire-replay: 1\r\ncontent-length: 12\r\n\r\n"
    b'data: "a"\n\n\n',
}


class Echo(asyncio.Protocol):
    """Answers each request with its path, or as `ANSWERS` says, and keeps the connection."""

    def connection_made(self, transport):
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data):
        self._parser.feed_data(data)

    def on_url(self, url):
        self._url = url

    def on_message_complete(self):
        echo = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(self._url), self._url)
        self._transport.write(ANSWERS.get(self._url, echo))


@pytest.fixture
async def pool():
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    pool = UpstreamPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    yield pool
    pool.close()
    server.close()


async def ask(pool, path):
    connection, buffer = await pool.acquire(), _Buffer(1000)
    connection.ask(request_bytes("GET", path, pool.authority, [], b""), buffer)
    return (await buffer.whole)[1].decode()


async def test_while_the_gateway_stands_still_no_replica_is_slow_to_answer():
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = UpstreamPool(f"http://127.0.0.1:{port}", connect_timeout_s=0.5)
    asking = asyncio.ensure_future(pool.fetch("GET", "/", headers=[], timeout_s=0.5, max_bytes=100))
    # Whatever is waited for is late by more than its limit, at each of the loop's first turns.
    for _ in range(12):
        await asyncio.sleep(0)
        if not asking.done():
            time.sleep(0.6)  # noqa: ASYNC251
    async with asyncio.timeout(60):
        assert await asking == (200, b"ok")
    server.close()


async def test_a_connection_that_is_gone_before_it_is_used_is_a_failure_of_the_replica(pool, monkeypatch):
    def made(connection, transport):
        connection._transport = transport
        transport.abort()

    monkeypatch.setattr(UpstreamConnection, "connection_made", made)
    with pytest.raises(UpstreamFailure, match="closed the connection at once"):
        await pool.acquire()


async def test_who_does_not_accept_a_connection_is_given_up():
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    port = full.getsockname()[1]
    # One connection fills the queue of a listener that accepts none.
    crowd = [socket.socket() for _ in range(4)]
    for each in crowd:
        each.setblocking(False)
        each.connect_ex(("127.0.0.1", port))
    pool = UpstreamPool(f"http://127.0.0.1:{port}", connect_timeout_s=0.6)
    with pytest.raises(UpstreamFailure, match="did not accept a connection within"):
        await pool.open()
    for each in (*crowd, full):
        each.close()


async def test_the_gateways_own_questions_never_end_a_requests_answer(pool):
    async def wonder():
        for number in range(100):
            assert await pool.fetch("GET", "/own", headers=[], timeout_s=DEADLINE_S, max_bytes=100) == (200, b"/own")
            await asyncio.sleep(0.001 * (number % 3))

    async def requests():
        return [await ask(pool, f"/{number}") for number in range(300)]

    async with asyncio.timeout(DEADLINE_S):
        *_, answers = await asyncio.gather(*(wonder() for _ in range(8)), requests())
    assert answers == [f"/{number}" for number in range(300)]


async def test_whoever_has_had_its_answer_cannot_close_the_connection_of_the_next(pool):
    connection, first, second = await pool.acquire(), _Buffer(1000), _Buffer(1000)
    connection.ask(request_bytes("GET", "/first", pool.authority, [], b""), first)
    await first.whole
    assert await pool.acquire() is connection
    connection.ask(request_bytes("GET", "/second", pool.authority, [], b""), second)
    connection.leave(first)
    async with asyncio.timeout(DEADLINE_S):
        assert (await second.whole)[1] == b"/second"
    third = _Buffer(1000)
    connection = await pool.acquire()
    connection.ask(request_bytes("GET", "/third", pool.authority, [], b""), third)
    connection.leave(third)
    await asyncio.sleep(0.01)
    assert not connection.is_usable
    assert not third.whole.done()


class Client(asyncio.Transport):
    """A client's connection that takes everything."""

    def is_closing(self):
        return False

    def write(self, data):
        pass


def relay(connection, record=None):
    reply = Reply(Client(), is_old=False, is_head=False, keeps_alive=True, is_paused=False, on_end=lambda: None)
    return reply, Relay(
        reply,
        connection,
        extra_headers=[],
        on_first_byte=lambda: None,
        pace=Pace(lambda _: None),
        on_written=lambda _: None,
        silence_s=DEADLINE_S,
        pulse=Pulse(),
        record=record,
    )


@pytest.mark.parametrize(("path", "end"), [("/busy", End.TURNED_AWAY), ("/torn", End.BROKEN)])
async def test_a_slow_client_does_not_hold_up_the_next_request_on_the_connection_it_had(pool, path, end):
    connection, second = await pool.acquire(), _Buffer(1000)
    reply, first = relay(connection, Record())
    connection.ask(request_bytes("GET", path, pool.authority, [], b""), first)
    assert (await first.settled).end is end
    assert await pool.acquire() is connection
    connection.ask(request_bytes("GET", "/second", pool.authority, [], b""), second)
    reply.pause()
    if end is End.TURNED_AWAY:
        first.accept()  # no other replica is there
    async with asyncio.timeout(DEADLINE_S):
        assert (await second.whole)[1] == b"/second"


async def test_a_client_that_has_caught_up_does_not_hurry_the_next_request_on_the_connection_it_had(pool):
    connection, second = await pool.acquire(), _Buffer(1000)
    reply, first = relay(connection, Record())
    connection.ask(request_bytes("GET", "/torn", pool.authority, [], b""), first)
    await first.settled
    assert await pool.acquire() is connection
    connection.ask(request_bytes("GET", "/second", pool.authority, [], b""), second)
    connection.pause()  # by the client of the second
    reply.resume()
    assert connection.is_paused
