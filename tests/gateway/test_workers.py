"""One gateway of several worker processes: one door, shared counts, pages that speak for all of them."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys

import httpx
import msgspec
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire_api import wire
from quire_gateway.heartbeat import TURN_S, Silence
from quire_gateway.siblings import labelled, whole_load, whole_report

ASK = {"model": "m", "messages": [{"role": "user", "content": "w1 w2 w3"}]}
FOREVER_S = 1000.0
HEADERS = {wire.HEADER_INTERNAL_KEY: "inner"}


def load(gateway, **counts):
    entry = {"in_flight": 1, "held": 2, "queued_tokens": 3, "requests": 4, "idle_s": 5.0, **counts}
    return wire.GatewayLoad(gateway=gateway, deployments=[wire.DeploymentLoad(deployment="d", namespace="n", **entry)])


def test_a_whole_load_adds_counts_and_takes_the_slowest_latency():
    whole = whole_load([load("b", ttft_p90_s=1.0), load("a", ttft_p90_s=3.0, idle_s=0.5), load("c")])
    (entry,) = whole.deployments
    assert whole.gateway == "a+b+c"
    assert (entry.in_flight, entry.held, entry.queued_tokens, entry.requests) == (3, 6, 9, 12)
    assert (entry.idle_s, entry.ttft_p90_s, entry.itl_p90_s) == (0.5, 3.0, None)


def test_a_whole_load_adds_arrivals_if_every_worker_tells_them():
    told = [load("a", arrivals_per_s=1.5, service_s=2.0), load("b", arrivals_per_s=2.0)]
    (entry,) = whole_load(told).deployments
    assert (entry.arrivals_per_s, entry.service_s) == (3.5, 2.0)
    (entry,) = whole_load([*told, load("c")]).deployments
    assert entry.arrivals_per_s is None


def test_a_replica_drains_once_every_worker_says_so_and_is_routable_if_one_does():
    def said(routable, reason, in_flight=1):
        entry = wire.ReplicaReport(
            deployment="d", namespace="n", replica="r", is_routable=routable, in_flight=in_flight, reason=reason
        )
        return wire.GatewayReport(replicas=[entry])

    def whole(*reports):
        (entry,) = whole_report(reports).replicas
        return entry.is_routable, entry.reason, entry.in_flight

    assert whole(said(True, "Draining"), said(True, "Draining", 4)) == (True, "Draining", 5)
    assert whole(said(True, "Draining"), said(True, "")) == (True, "", 2)
    assert whole(said(True, "Draining"), said(False, "Starting")) == (True, "Starting", 2)
    assert whole(said(False, "Ejected: x"), said(True, "")) == (True, "", 2)


def test_expositions_become_one_with_a_label():
    one = '# HELP a_total x\n# TYPE a_total counter\na_total{k="v"} 1.0\n'
    whole = labelled({"0": one, "1": one.replace("1.0", "2.0") + "# HELP b y\n# TYPE b gauge\nb 7.0\n"}).decode()
    assert whole.count("# TYPE a_total counter") == 1
    assert 'a_total{k="v",worker="0"} 1.0' in whole
    assert 'a_total{k="v",worker="1"} 2.0' in whole
    assert 'b{worker="1"} 7.0' in whole


class Workers:
    """A gateway process with workers, and its address."""

    def __init__(self, process, url):
        self.process, self.url = process, url

    @property
    def pids(self):
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def client(self):
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="x", max_retries=0, timeout=60.0)

    async def page(self, kind, path):
        # A connection of its own: any worker may answer.
        async with httpx.AsyncClient(timeout=60.0) as http:
            answer = await http.get(f"{self.url}{path}", headers=HEADERS)
        return answer if kind is None else msgspec.json.decode(answer.raise_for_status().content, type=kind)


@pytest.fixture
async def start(make_world, tmp_path):
    """A gateway of `number` workers in front of the engines of the world that is returned with it."""
    started = []

    async def start(number, engines=1, more=(), **config):
        world = await make_world(engines, **config)
        flags = ["--routing-table", str(world.table_path), "--port", "0", "--workers", str(number), "--access-log", ""]
        flags += more
        told = tmp_path / "stderr"
        with told.open("wb") as file:
            process = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-m", "quire_gateway", *flags],
                env={**os.environ, "QUIRE_INTERNAL_KEY": "inner"},
                stderr=file,
            )
        started.append(process)
        await world.until(lambda: re.search(r"listening on (\S+)", told.read_text()) or process.poll() is not None)
        match = re.search(r"listening on (\S+)", told.read_text())
        assert match, told.read_text()
        gateway = Workers(process, match[1])

        async def is_whole():
            with contextlib.suppress(httpx.HTTPError):
                report = await gateway.page(wire.GatewayReport, "/internal/v1/replicas")
                return len(report.replicas) == engines and all(each.is_routable for each in report.replicas)

        while not await is_whole():
            assert process.poll() is None, told.read_text()
            await asyncio.sleep(0.05)
        return world, gateway

    yield start
    for process in started:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children():
                child.kill()
        process.kill()
        process.wait()


async def total(gateway):
    (entry,) = (await gateway.page(wire.GatewayLoad, "/internal/v1/load")).deployments
    return entry.in_flight


async def test_whoever_is_asked_tells_of_all_and_a_worker_killed_costs_the_others_nothing(start):
    world, gateway = await start(3, internal_key="inner")
    assert len(gateway.pids) == 3
    engine = world.engines["r0"]
    engine.first_delay_s = FOREVER_S
    # Each on a connection of its own.
    clients = [gateway.client() for _ in range(6)]
    asking = [asyncio.ensure_future(each.chat.completions.create(**ASK)) for each in clients]
    await world.until(lambda: len(engine.seen) == 6)
    for _ in range(4):
        assert await total(gateway) == 6
    report = await gateway.page(wire.GatewayReport, "/internal/v1/replicas")
    assert [entry.in_flight for entry in report.replicas] == [6]
    text = (await gateway.page(None, "/metrics")).text
    (family,) = [each for each in text_string_to_metric_families(text) if each.name == "quire_gateway_in_flight"]
    assert sum(sample.value for sample in family.samples) == 6
    assert {sample.labels["worker"] for sample in family.samples} == {"0", "1", "2"}

    victim = min(gateway.pids)
    os.kill(victim, signal.SIGKILL)
    await world.until(lambda: len(gateway.pids) == 3 and victim not in gateway.pids)
    lost, kept = 0, []
    while not kept:
        await asyncio.sleep(0.05)
        lost = sum(each.done() for each in asking)
        answer = await gateway.page(None, "/internal/v1/load")
        if answer.is_success:
            kept = [each.in_flight for each in msgspec.json.decode(answer.content, type=wire.GatewayLoad).deployments]
    assert kept == [6 - lost]
    engine.first_delay_s = 0.0
    again = [gateway.client() for _ in range(6)]
    answers = await asyncio.gather(*(each.chat.completions.create(**ASK) for each in again))
    assert all(answer.choices for answer in answers)
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_workers_know_what_the_others_have_in_flight(start):
    world, gateway = await start(2, engines=2, internal_key="inner")
    for engine in world.engines.values():
        engine.first_delay_s = FOREVER_S
    asking = []
    for number in range(1, 9):
        asking.append(asyncio.ensure_future(gateway.client().chat.completions.create(**ASK)))
        await world.until(lambda number=number: sum(len(each.seen) for each in world.engines.values()) == number)
        # What one has taken on, the other is told within a beat; then it decides with that.
        told = await gateway.page(wire.RouteExplanation, "/debug/route?model=m&message=w1")
        while sum(each.in_flight for each in told.replicas) != number:
            await asyncio.sleep(0.01)
            told = await gateway.page(wire.RouteExplanation, "/debug/route?model=m&message=w1")
    assert sorted(len(each.seen) for each in world.engines.values())[0] > 0
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


@pytest.mark.parametrize(
    ("number", "is_of_terminal"), [(signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGHUP, True)]
)
async def test_a_signal_lets_every_worker_end_its_stream(start, number, is_of_terminal):
    """A terminal sends its signals to the whole group."""
    world, gateway = await start(2, internal_key="inner")
    engine = world.engines["r0"]
    engine.gate = asyncio.Event()
    asking = [asyncio.ensure_future(gateway.client().chat.completions.create(**ASK)) for _ in range(4)]
    await world.until(lambda: len(engine.seen) == 4)
    for pid in gateway.pids if is_of_terminal else ():
        os.kill(pid, number)
    gateway.process.send_signal(number)
    await asyncio.sleep(0.2)
    assert gateway.process.poll() is None
    engine.gate.set()
    assert all(answer.choices for answer in await asyncio.gather(*asking))
    assert await asyncio.to_thread(gateway.process.wait, 60.0) == 0


async def test_workers_end_with_a_supervisor_that_was_killed(start):
    world, gateway = await start(2, internal_key="inner")
    workers = [psutil.Process(pid) for pid in gateway.pids]
    gateway.process.kill()
    await world.until(lambda: not any(each.is_running() for each in workers))


async def test_a_worker_that_stands_still_gives_its_place_to_a_new_one_while_the_others_serve(start):
    _, gateway = await start(2, more=["--worker-silence-s", "10"], internal_key="inner")
    victim = min(gateway.pids)
    os.kill(victim, signal.SIGSTOP)
    stopped = psutil.Process(victim)
    answers = 0
    while victim in gateway.pids:
        # A connection that the stopped worker took before it was stopped would be lost; these come later.
        assert (await gateway.client().chat.completions.create(**ASK)).choices
        answers += 1
    assert answers
    assert not stopped.is_running()

    told = []
    async with asyncio.timeout(60.0):
        while {sample.labels["worker"] for sample in told} != {"0", "1"}:
            text = (await gateway.page(None, "/metrics")).text
            families = text_string_to_metric_families(text)
            (family,) = [each for each in families if each.name == "quire_gateway_worker_restarts"]
            told = [sample for sample in family.samples if sample.name.endswith("_total")]
    assert {
        cause: sum(each.value for each in told if each.labels["cause"] == cause) for cause in ("ended", "hung")
    } == {
        "ended": 0,
        "hung": 1,
    }
    clients = [gateway.client() for _ in range(6)]
    answers = await asyncio.gather(*(each.chat.completions.create(**ASK) for each in clients))
    assert all(answer.choices for answer in answers)


_HANGS = """
import os, signal, sys, time
from pathlib import Path
from quire_gateway.config import GatewayConfig
from quire_gateway.workers import Supervisor

hangs_in_drain = sys.argv[1] == "drain"

def work(worker):
    is_told = []
    signal.signal(signal.SIGTERM, lambda *_: is_told.append(True))
    os.write(1, b"start %d %d\\n" % (worker.number, worker.restarts.get("hung", 0)))
    while worker.number == 1 and not worker.restarts and not hangs_in_drain:
        pass
    while not is_told:
        worker.beats.beat(worker.number)
        time.sleep(0.1)
    while worker.number == 1 and hangs_in_drain:
        pass
    time.sleep(8.0)
    os.write(1, b"drained %d\\n" % worker.number)
    return 0

shutdown_timeout_s = 2.0 if hangs_in_drain else 300.0
raise SystemExit(Supervisor(GatewayConfig(port=0, workers=2, worker_silence_s=4.0,
    shutdown_timeout_s=shutdown_timeout_s, routing_table=Path("table")), work).run())
"""


@contextlib.asynccontextmanager
async def supervised(script, *arguments):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()


async def until_told(process, wanted):
    """Its lines so far, once they are all there."""
    lines = []
    async with asyncio.timeout(60.0):
        while not wanted <= set(lines):
            lines.append((await process.stdout.readline()).decode())
            assert lines[-1], lines
    return lines


async def test_an_endless_loop_is_ended_and_a_drain_is_waited_for():
    async with supervised(_HANGS, "at once") as process:
        lines = await until_told(process, {"start 0 0\n", "start 1 1\n"})
        process.send_signal(signal.SIGTERM)
        # Both are silent for longer than is allowed otherwise.
        lines += (await process.stdout.read()).decode().splitlines(keepends=True)
        assert await process.wait() == 0
    assert sum("hangs" in line for line in lines) == 1
    assert any(line.startswith("worker 1 hangs: its loop has not turned for 4 s") for line in lines)
    assert lines.count("start 0 0\n") == 1
    assert {"drained 0\n", "drained 1\n"} <= set(lines)


async def test_a_worker_that_hangs_in_its_drain_ends_after_the_time_for_that():
    async with supervised(_HANGS, "drain") as process:
        lines = await until_told(process, {"start 0 0\n", "start 1 0\n"})
        process.send_signal(signal.SIGTERM)
        lines += (await process.stdout.read()).decode().splitlines(keepends=True)
        assert await process.wait() == 0
    assert any(line.startswith("worker 1 hangs") for line in lines)
    assert "drained 1\n" not in lines


def test_nobody_is_silent_while_the_listener_stands_still():
    silence = Silence(beats=7)
    silence.turn(7, 1.0)
    assert silence.seconds == 1.0
    silence.turn(7, 3600.0)  # the machine slept
    assert silence.seconds == 1.0 + 2 * TURN_S
    silence.turn(8, 1.0)
    assert silence.seconds == 0.0


_FALLS = """
import os, signal, time
from pathlib import Path
from quire_gateway.config import GatewayConfig
from quire_gateway.workers import Supervisor

def work(worker):
    # One write a line: the workers share the pipe, and print may write a line in pieces.
    os.write(1, b"door %d\\n" % worker.door.fileno())
    if worker.number == 1:
        return 9
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), os._exit(0)))
    os.write(1, b"ready\\n")
    while True:
        signal.pause()

raise SystemExit(Supervisor(GatewayConfig(port=0, workers=2, routing_table=Path("table")), work).run())
"""


async def test_a_worker_that_fell_is_not_started_behind_closed_doors_while_the_others_drain():
    lines = []
    async with supervised(_FALLS) as falling:
        async with asyncio.timeout(60.0):
            while "ready\n" not in lines or sum("starts again" in line for line in lines) < 3:
                lines.append((await falling.stdout.readline()).decode())
                assert lines[-1], lines
            falling.send_signal(signal.SIGTERM)
            lines += (await falling.stdout.read()).decode().splitlines()
            assert await falling.wait() == 0
    doors = [int(line.split()[1]) for line in lines if line.startswith("door")]
    assert len(doors) >= 4
    assert min(doors) >= 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--peers", "a:1"], "--peers with --workers 2"),
        (["--workers", "65"], "--workers"),
        (["--tls-certificate", "/nowhere"], "--tls-key"),
    ],
)
async def test_what_cannot_be_is_told_once(flags, words, tmp_path):
    table = tmp_path / "table.json"
    table.write_bytes(msgspec.json.encode(wire.RoutingTable()))
    command = [sys.executable, "-m", "quire_gateway", "--routing-table", str(table), "--port", "0", "--workers", "2"]
    done = await asyncio.to_thread(subprocess.run, [*command, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_an_address_in_use_is_told_with_its_flag(tmp_path, make_world):
    world = await make_world(1)
    flags = ["--routing-table", str(world.table_path), "--port", str(world.gateway.port), "--workers", "2"]
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "quire_gateway", *flags], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "Choose another --port" in done.stderr
