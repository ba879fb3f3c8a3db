"""Replicas that die, refuse, stall or come back, seen from the client."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import httpx
import msgspec
import openai
import pytest

from quire_api import wire
from quire_gateway.main import main

ASK = [{"role": "user", "content": "w1 w2 w3"}]


async def read(stream):
    return "".join([chunk.choices[0].delta.content async for chunk in stream])


async def test_death_before_the_first_byte_is_retried_elsewhere(world):
    bad, good = world.engines.values()
    bad.dies_before_first_byte = True
    answers = [await world.client().chat.completions.with_raw_response.create(model="m", messages=ASK) for _ in "ab"]
    assert [answer.headers["x-quire-replica"] for answer in answers] == ["r1", "r1"]
    attempts = sum(int(answer.headers["x-quire-attempts"]) for answer in answers)
    assert attempts > 2
    assert (len(bad.seen), len(good.seen)) == (attempts - 2, 2)


async def test_death_between_head_and_first_event_is_retried_too(world):
    bad, _ = world.engines.values()
    bad.dies_after_tokens = 0
    for _ in "ab":
        stream = await world.client().chat.completions.create(model="m", messages=ASK, stream=True)
        assert await read(stream) == "w0 w1 w2 w3 w4 "
    assert bad.seen


@pytest.mark.parametrize("leaves_a_torn_event", [False, True])
async def test_death_in_mid_stream_ends_the_stream_with_an_error_event(make_world, leaves_a_torn_event):
    world = await make_world(1)
    engine = world.engines["r0"]
    engine.dies_after_tokens, engine.dies_after_partial_event = 2, leaves_a_torn_event
    words = []

    async def gather(stream):
        async for chunk in stream:
            words.append(chunk.choices[0].delta.content)

    stream = await world.client().chat.completions.create(model="m", messages=ASK, stream=True)
    with pytest.raises(openai.APIError, match="failed while it was answering"):
        await gather(stream)
    assert words == ["w0 ", "w1 "]
    await world.until(lambda: world.log_lines())
    assert world.log_lines()[0]["outcome"] == "broken"
    assert world.is_quiet()


async def test_a_whole_answer_that_always_breaks_off_is_an_error(make_world):
    world = await make_world(1)
    world.engines["r0"].raw_answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    with pytest.raises(openai.InternalServerError, match="failed on this request 3 times"):
        await world.client().chat.completions.create(model="m", messages=ASK)


async def test_a_long_whole_answer_that_breaks_off_is_seen_as_broken(make_world):
    world = await make_world(1)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999999\r\n\r\n"
    world.engines["r0"].raw_answer = head + b"{"
    with pytest.raises(openai.APIConnectionError):
        await world.client().chat.completions.create(model="m", messages=ASK)


async def test_kill_9_under_eight_streams_loses_no_request_that_had_not_begun(make_world, make_engine):
    gate = asyncio.Event()
    slow = await make_engine(gate=gate)
    doomed = await make_engine(first_delay_s=1000.0)
    world = await make_world({"slow": slow, "doomed": doomed})

    async def one(number):
        ask = [{"role": "user", "content": f"w{number}"}]
        return await read(await world.client().chat.completions.create(model="m", messages=ask, stream=True))

    asking = [asyncio.ensure_future(one(number)) for number in range(8)]
    await world.until(lambda: len(doomed.seen) + len(slow.seen) == 8)
    assert len(doomed.seen) >= 3
    doomed.kill()
    gate.set()
    assert set(await asyncio.gather(*asking)) == {"w0 w1 w2 w3 w4 "}
    await world.until_routable("slow")
    await world.until(world.is_quiet)


async def test_a_killed_replica_is_ejected_and_comes_back_by_itself(world):
    dead = world.engines["r0"]
    dead.kill()
    for _ in range(4):
        await world.client().chat.completions.create(model="m", messages=ASK)
    await world.until_routable("r1")
    reasons = {each.replica: each.reason for each in world.gateway.fleet.report().replicas}
    assert reasons["r1"] == ""
    assert "ejected" in reasons["r0"].lower() or "refused" in reasons["r0"]
    await dead.start()
    await world.until_routable("r0", "r1")


async def test_503_goes_elsewhere_and_is_passed_on_when_all_say_it(world):
    first, second = world.engines.values()
    first.status = 503
    answers = [await world.client().chat.completions.with_raw_response.create(model="m", messages=ASK) for _ in "ab"]
    assert {answer.headers["x-quire-replica"] for answer in answers} == {"r1"}
    second.status = 503
    with pytest.raises(openai.InternalServerError, match="stub says no") as caught:
        await world.client().chat.completions.create(model="m", messages=ASK)
    assert caught.value.status_code == 503


async def test_a_503_that_can_go_nowhere_else_costs_no_retry_that_another_request_needs(make_world):
    world = await make_world(2, retry_ratio=0.0)  # ten retries in all
    first, _ = world.engines.values()
    other = next(replica for replica in world.gateway.fleet.replicas() if replica.id == "r1")
    other.is_draining = True
    ask = world.client().chat.completions.with_raw_response
    for _ in range(12):
        first.status = 503
        with pytest.raises(openai.InternalServerError, match="stub says no"):
            await ask.create(model="m", messages=ASK)
        first.status = 200
        await ask.create(model="m", messages=ASK)
    other.is_draining = False
    first.status = 503
    answers = [await ask.create(model="m", messages=ASK) for _ in "ab"]
    assert {answer.headers["x-quire-replica"] for answer in answers} == {"r1"}


async def test_a_503_that_breaks_as_soon_as_it_has_begun_is_told_as_a_failure(make_world):
    world = await make_world(1)
    # In one piece: the failure comes before anybody has decided what becomes of the 503.
    world.engines["r0"].raw_answer = b"HTTP/1.1 503 X\r\ntransfer-encoding: chunked\r\n\r\nnot a chunk\r\n"
    with pytest.raises(openai.InternalServerError, match="failed on this request 3 times"):
        await world.client().chat.completions.create(model="m", messages=ASK)


@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_other_errors_are_not_retried(world, status):
    for engine in world.engines.values():
        engine.status = status
    with pytest.raises(openai.APIStatusError) as caught:
        await world.client().chat.completions.create(model="m", messages=ASK)
    assert caught.value.status_code == status
    assert sum(len(engine.seen) for engine in world.engines.values()) == 1


async def test_an_answer_that_is_not_http_is_retried_elsewhere(world):
    world.engines["r0"].garbage = b"SSH-2.0-OpenSSH\r\n\r\n"
    for _ in "ab":
        await world.client().chat.completions.create(model="m", messages=ASK)
    assert len(world.engines["r1"].seen) == 2


async def test_a_request_that_kills_every_replica_is_given_up_after_three(make_world):
    world = await make_world(5)
    for engine in world.engines.values():
        engine.dies_before_first_byte = True
    with pytest.raises(openai.InternalServerError, match="failed on this request 3 times"):
        await world.client().chat.completions.create(model="m", messages=ASK)
    assert sum(len(engine.seen) for engine in world.engines.values()) == 3


async def test_connections_to_engines_are_reused(make_world):
    world = await make_world(1)
    before = world.engines["r0"].connections
    for is_streamed in [False, True] * 5:
        answer = await world.client().chat.completions.create(model="m", messages=ASK, stream=is_streamed)
        if is_streamed:
            await read(answer)
    assert world.engines["r0"].connections == before + 1


async def test_idle_connections_that_the_engine_closed_cost_no_attempt(make_world):
    world = await make_world(1)
    world.engines["r0"].closes_idle = True
    for _ in range(20):
        raw = await world.client().chat.completions.with_raw_response.create(model="m", messages=ASK)
        assert raw.headers["x-quire-attempts"] == "1"
    assert world.routable() == {"r0"}


async def test_a_silent_replica_counts_as_failed(make_world, make_engine):
    frozen, good = await make_engine(first_delay_s=1000.0), await make_engine()
    world = await make_world({"a": frozen, "b": good}, upstream_silence_s=2.0)
    for _ in "ab":
        await world.client().chat.completions.create(model="m", messages=ASK)
    assert frozen.seen
    assert len(good.seen) == 2
    await world.until(lambda: frozen.hung_up == len(frozen.seen))


@pytest.mark.parametrize("knobs", [{"first_delay_s": 1000.0}, {"garbage": b"SSH-2.0-OpenSSH\r\n\r\n"}])
async def test_a_replica_that_fails_on_a_reused_connection_is_not_asked_again(make_world, knobs):
    world = await make_world(2, upstream_silence_s=2.0)
    bad, good = world.engines.values()
    for engine in (bad, good):
        engine.gate = asyncio.Event()
    asking = [world.client().chat.completions.create(model="m", messages=ASK) for _ in range(2)]
    asking = [asyncio.ensure_future(each) for each in asking]
    await world.until(lambda: bad.seen and good.seen)
    for engine in (bad, good):
        engine.gate.set()
    await asyncio.gather(*asking)
    for knob, value in knobs.items():
        setattr(bad, knob, value)
    answers = [await world.client().chat.completions.with_raw_response.create(model="m", messages=ASK) for _ in "ab"]
    failed = sum(int(answer.headers["x-quire-attempts"]) - 1 for answer in answers)
    assert failed >= 1
    assert len(bad.seen) == 1 + failed


async def test_requests_wait_for_the_first_replica(make_world, make_engine):
    world = await make_world({})
    asking = asyncio.ensure_future(world.client().chat.completions.create(model="m", messages=ASK))
    await world.until(lambda: [each.held for each in world.gateway.fleet.deployments.values()] == [1])
    async with world.http() as http:
        assert (await http.get("/ready")).status_code == 503
    engine = await make_engine()
    world.table.deployments[0].replicas = [wire.Replica(id="late", url=engine.url)]
    world.publish()
    assert (await asking).choices[0].message.content == "w0 w1 w2 w3 w4"
    async with world.http() as http:
        assert (await http.get("/ready")).status_code == 200
        engine.kill()
        world.table.deployments[0].replicas = []
        world.publish()
        await world.until(lambda: not world.routable())
        assert (await http.get("/ready")).status_code == 200, "ready latches"


async def test_waiting_ends_with_503_and_says_why(make_world, make_engine):
    loading = await make_engine(status=503)
    world = await make_world({}, hold_timeout_s=0.5)
    world.table.deployments[0].replicas = [wire.Replica(id="a", url=loading.url)]
    world.publish()
    replicas = world.gateway.fleet.replicas
    await world.until(lambda: any("answered 503" in replica.health.reason for replica in replicas()))
    with pytest.raises(openai.InternalServerError, match=r"a: ProbeFailed: .* answered 503") as caught:
        await world.client().chat.completions.create(model="m", messages=ASK)
    assert caught.value.status_code == 503
    assert caught.value.code == "no_replica"
    assert caught.value.response.headers["retry-after"] == "5"


async def test_the_one_replica_that_restarts_serves_the_request_it_lost(make_world):
    world = await make_world(1)
    engine = world.engines["r0"]
    engine.first_delay_s = 1000.0
    asking = asyncio.ensure_future(world.client().chat.completions.create(model="m", messages=ASK))
    await world.until(lambda: engine.seen)
    engine.kill()
    await world.until(lambda: not world.routable())
    engine.first_delay_s = 0.0
    await engine.start()
    assert (await asking).choices[0].message.content == "w0 w1 w2 w3 w4"


async def test_a_full_deployment_answers_429_with_retry_after(make_world):
    world = await make_world(1, max_in_flight_per_replica=2, max_held=0)
    world.engines["r0"].first_delay_s = 1000.0
    asking = [asyncio.ensure_future(world.client().chat.completions.create(model="m", messages=ASK)) for _ in range(2)]
    await world.until(lambda: len(world.engines["r0"].seen) == 2)
    with pytest.raises(openai.RateLimitError) as caught:
        await world.client().chat.completions.create(model="m", messages=ASK)
    assert caught.value.code == "queue_full"
    assert caught.value.response.headers["retry-after"] == "1"
    for each in asking:
        each.cancel()
    await world.until(world.is_quiet)


async def test_too_many_held_requests_are_turned_away(make_world):
    world = await make_world({}, max_held=1)
    held = asyncio.ensure_future(world.client().chat.completions.create(model="m", messages=ASK))
    await world.until(lambda: [each.held for each in world.gateway.fleet.deployments.values()] == [1])
    with pytest.raises(openai.InternalServerError) as caught:
        await world.client().chat.completions.create(model="m", messages=ASK)
    assert caught.value.code == "too_many_held"
    held.cancel()


async def test_a_draining_replica_finishes_what_it_has_and_gets_nothing_new(world):
    engine = world.engines["r0"]
    engine.tokens, engine.token_delay_s = 30, 0.05
    world.engines["r1"].tokens = 1
    world.table.deployments[0].replicas[1].is_draining = True
    world.publish()
    await world.until_routable("r0")
    stream = await world.client().chat.completions.create(model="m", messages=ASK, stream=True)
    world.table.deployments[0].replicas[1].is_draining = False
    world.table.deployments[0].replicas.pop(0)
    world.publish()
    await world.until_routable("r1")
    for _ in range(3):
        await world.client().chat.completions.create(model="m", messages=ASK)
    assert len((await read(stream)).split()) == 30
    assert len(engine.seen) == 1


async def test_nothing_is_left_behind_by_clients_that_come_and_go(world):
    for engine in world.engines.values():
        engine.tokens, engine.token_delay_s = 1000, 0.01
    await asyncio.sleep(0)
    tasks = len(asyncio.all_tasks())
    body = b'{"model": "m", "prompt": "w1", "stream": true}'
    data = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    for number in range(40):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
        writer.write(data[: number * 5] if number % 2 else data)
        if number % 4 == 0:
            await reader.readuntil(b"data: ")
        writer.transport.abort()
    await world.until(world.is_quiet)
    await world.until(lambda: all(not engine.streaming for engine in world.engines.values()))
    await world.until(lambda: len(asyncio.all_tasks()) <= tasks)
    assert world.routable() == {"r0", "r1"}


async def test_a_slow_client_slows_its_engine_and_not_the_gateways_memory(make_world):
    world = await make_world(1)
    engine = world.engines["r0"]
    engine.tokens, engine.payload = 4000, b"x" * 16384
    body = b'{"model": "m", "prompt": "w1", "stream": true}'
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port, limit=4096)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    await world.until(lambda: engine.written > 0)
    # Engine and gateway share this loop: whoever may write does so within the many turns of a request.
    async with asyncio.timeout(60), world.http() as http:
        unchanged, before = 0, 0
        while unchanged < 20:
            assert (await http.post("/v1/completions", json={"model": "m", "prompt": "w1"})).status_code == 200
            unchanged = unchanged + 1 if engine.written == before else 0
            before = engine.written
    assert engine.written < 2000, "the engine was not stopped by a client that does not read"
    rest = 0
    while data := await reader.read(1 << 16):
        rest += len(data)
        if data.endswith(b"0\r\n\r\n"):
            break
    assert rest > 4000 * 16384
    writer.close()


def test_sigterm_finishes_streams_says_not_ready_and_exits_0(tmp_path):
    with Process(tmp_path) as process, httpx.Client(base_url=process.url, timeout=60.0) as http:
        wait(lambda: http.get("/ready").status_code == 200)
        with http.stream("POST", "/v1/completions", json={"model": "m", "prompt": "w1", "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.gateway.send_signal(signal.SIGTERM)
            with httpx.Client(base_url=process.url, timeout=60.0) as other:
                wait(lambda: other.get("/ready").status_code == 503)
                refused = other.post("/v1/completions", json={"model": "m", "prompt": "w1"})
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            process.may_end.touch()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.gateway.wait(60) == 0


async def test_clients_of_a_gateway_that_drains_are_told_to_leave_before_it_turns_them_away(make_world):
    world = await make_world(1, drain_grace_s=600.0)
    engine = world.engines["r0"]
    engine.stalls_after_tokens = 2
    body = b'{"model": "m", "prompt": "w1", "stream": true}'
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    await reader.readuntil(b"data: {")
    draining = asyncio.create_task(world.gateway.drain())
    async with world.http() as http:
        assert (await http.get("/ready")).status_code == 503
        answer = await http.post("/v1/completions", json={"model": "m", "prompt": "w1"})
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    engine.stalls_after_tokens = None
    async with asyncio.timeout(60):
        # What has begun did not say so: its client may send once more, and hears of it then.
        await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in head
    assert rest.endswith(b"\r\n0\r\n\r\n")
    writer.close()
    draining.cancel()


async def test_a_stream_that_outlasts_the_grace_takes_its_connection_along(make_world):
    world = await make_world(2, {"policy": "roundRobin"}, drain_grace_s=0.01)
    body = b'{"model": "m", "prompt": "w1", "stream": true}'
    clients = []
    for engine in world.engines.values():
        engine.stalls_after_tokens = 2
        reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await reader.readuntil(b"data: {")
        clients.append((engine, reader, writer))
    draining = asyncio.create_task(world.gateway.drain())
    async with asyncio.timeout(60), world.http() as http:
        status = 0
        while status != 503:
            # What is sent as the grace ends may meet a connection that has just been closed.
            with contextlib.suppress(httpx.TransportError):
                status = (await http.post("/v1/completions", json=[])).status_code
    async with asyncio.timeout(60):
        for engine, reader, writer in clients:
            engine.stalls_after_tokens = None
            # To its end, while the other one goes on: nobody is led to send one more request here.
            assert (await reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            writer.close()
        await draining


async def test_a_port_in_use_is_one_line_and_exit_code_2(world, capsys):
    flags = ["--port", str(world.gateway.port), "--routing-table", str(world.table_path)]
    assert await asyncio.to_thread(main, flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Choose another --port" in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--port", "eighty"], "--port"),
        (["--routing-table", "t", "--max-attempts", "0"], "--max-attempts"),
        (["--routing-table", "t", "--access-log", "/nowhere/log"], "/nowhere/log"),
        ([], "--routing-table FILE"),
    ],
)
def test_bad_settings_are_one_line_and_exit_code_2(flags, says, capsys):
    assert main(flags) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


GATEWAY = [sys.executable, "-m", "quire_gateway"]
ENGINE = """
import asyncio, os, sys
async def serve(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    length = [int(line[15:]) for line in head.split(b"\\r\\n") if line.lower().startswith(b"content-length:")]
    body = await reader.readexactly(length[0] if length else 0)
    if b'"stream"' in body:
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-type: text/event-stream\\r\\nconnection: close\\r\\n\\r\\n")
        while not os.path.exists(sys.argv[1]):
            writer.write(b'data: {"n": 1}\\n\\n')
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.write(b"data: [DONE]\\n\\n")
    else:
        status = b"404 X" if head.startswith(b"GET") else b"200 OK"
        writer.write(b"HTTP/1.1 " + status + b"\\r\\ncontent-length: 2\\r\\nconnection: close\\r\\n\\r\\n{}")
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


class Process:
    """A gateway in front of an engine that does not tell its model and streams until `may_end` exists."""

    def __init__(self, folder):
        self.table = folder / "table.json"
        self.may_end = folder / "may-end"

    def __enter__(self):
        self._engine = subprocess.Popen([sys.executable, "-c", ENGINE, str(self.may_end)], stdout=subprocess.PIPE)
        replica = wire.Replica(id="a", url=f"http://127.0.0.1:{int(self._engine.stdout.readline())}")
        deployment = wire.Deployment(name="d", namespace="n", served_names=["m"], replicas=[replica])
        self.table.write_bytes(msgspec.json.encode(wire.RoutingTable(deployments=[deployment])))
        self.gateway = subprocess.Popen(
            [*GATEWAY, "--port", "0", "--routing-table", str(self.table)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            text=True,
        )
        self.url = self.gateway.stderr.readline().split()[-1]
        return self

    def __exit__(self, *_):
        for child in (self._engine, self.gateway):
            child.kill()
            child.wait()
        self._engine.stdout.close()
        self.gateway.stderr.close()


def wait(condition):
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
