"""Clients that connect and then take their time."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import uvicorn

from quire_runtime.server import protocol

HEAD = b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
DEADLINE_S = 60.0


async def app(scope, receive, send) -> None:
    """Answers once the body is there; `/streams` does not ask for it, and answers in two parts, `let_go` between."""
    if scope["path"] == "/slow":
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    if scope["path"] == "/streams":
        await app.let_go.wait()
    await send({"type": "http.response.body", "body": b"two", "more_body": False})


@pytest.fixture
async def server() -> AsyncIterator[uvicorn.Server]:
    app.let_go = asyncio.Event()
    config = uvicorn.Config(app, http=protocol.Http, lifespan="off", log_level="error", host="127.0.0.1", port=0)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    async with asyncio.timeout(DEADLINE_S):
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield server
        server.should_exit = True
        await serving


async def connect(server: uvicorn.Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HTT",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ",
        HEAD + b"{",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTT",
    ],
)
async def test_a_request_that_never_ends_gets_408_and_the_door(server, monkeypatch, begun):
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(protocol, "BODY_TIMEOUT_S", 0.2)
    reader, writer = await connect(server)
    writer.write(begun)
    answer = await reader.read()
    writer.close()
    head, _, body = answer[answer.index(b"HTTP/1.1 408 ") :].partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == "request_timeout"


async def test_an_answer_under_way_is_not_spoiled_by_what_comes_slowly_behind_it(server):
    reader, writer = await connect(server)
    writer.write(b"GET /streams HTTP/1.1\r\nHost: x\r\n\r\nGET /late HT")
    await reader.readuntil(b"one\r\n")
    (connection,) = server.server_state.connections
    assert connection._timer is not None
    connection._timed_out()
    app.let_go.set()
    assert await reader.readuntil(b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"
    writer.write(b"TP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_nothing_is_awaited_between_requests(server):
    reader, writer = await connect(server)
    for _ in range(2):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        (connection,) = server.server_state.connections
        assert connection._timer is None
    writer.close()
