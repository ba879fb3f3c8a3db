"""Connections to a replica, shared by its requests and the gateway's own questions."""

import asyncio

import httptools
import pytest

from quire_gateway.upstream import UpstreamPool, _Buffer, request_bytes

DEADLINE_S = 60.0


class Echo(asyncio.Protocol):
    """Answers each request with its path, and keeps the connection."""

    def connection_made(self, transport):
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data):
        self._parser.feed_data(data)

    def on_url(self, url):
        self._url = url

    def on_message_complete(self):
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(self._url), self._url))


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
