"""Traces: spans of gateway and engine in the client's own trace, as a collector gets them."""

import asyncio
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from quire_api.tracing import BadTracesEndpoint, TracingNotInstalled, make_tracing, without_context

ASK = {"model": "m", "messages": [{"role": "user", "content": "w1 w2"}]}
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


@dataclass
class Collector:
    """What takes OTLP over HTTP; spans by name."""

    url: str = ""
    spans: dict[str, list] = field(default_factory=dict)


@pytest.fixture
async def collector():

    taken = Collector()

    async def take(request):
        told = ExportTraceServiceRequest.FromString(await request.read())
        for resource in told.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    taken.spans.setdefault(span.name, []).append(span)
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    taken.url = f"http://127.0.0.1:{port}/v1/traces"
    yield taken
    await runner.cleanup()


def attributes(span):
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


async def test_a_request_is_a_span_in_its_callers_trace_and_each_replica_asked_a_child(make_world, collector):
    world = await make_world(2, {"policy": "roundRobin"}, otlp_traces_endpoint=collector.url)
    world.engines["r0"].dies_before_first_byte = True
    answer = await world.client().chat.completions.with_raw_response.create(
        **ASK, extra_headers={"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    )
    assert answer.headers["x-quire-replica"] == "r1"
    await world.gateway.close()
    (request,) = collector.spans["POST /v1/chat/completions"]
    (lost,), (kept,) = collector.spans["replica r0"], collector.spans["replica r1"]
    assert {each.trace_id.hex() for each in (request, lost, kept)} == {TRACE}
    assert request.parent_span_id.hex() == CALLER
    assert lost.parent_span_id == kept.parent_span_id == request.span_id
    assert (lost.status.code, kept.status.code, request.status.code) == (2, 0, 0)
    told = attributes(request)
    assert told["gen_ai.request.model"] == "m"
    assert told["http.response.status_code"] == 200
    assert told["quire.replica"] == "r1"
    assert told["quire.attempts"] == 2
    assert not any("w1" in str(value) for value in told.values()), "never a word of a prompt"
    (seen,) = world.engines["r1"].seen
    assert seen.headers["traceparent"] == f"00-{TRACE}-{kept.span_id.hex()}-01"
    assert seen.headers["tracestate"] == "vendor=1"


async def test_without_a_context_a_new_trace_begins_and_a_refusal_is_told(make_world, collector):
    world = await make_world({}, otlp_traces_endpoint=collector.url, hold_timeout_s=0.1)
    await world.until(lambda: world.gateway.fleet.serving("m"))
    async with world.http() as http:
        assert (await http.post("/v1/chat/completions", json=ASK)).status_code == 503
    await world.gateway.close()
    (span,) = collector.spans["POST /v1/chat/completions"]
    assert not span.parent_span_id
    assert span.status.code == 2
    assert attributes(span)["http.response.status_code"] == 503


async def test_the_span_of_a_request_whose_client_has_gone_says_so(make_world, collector):
    world = await make_world(1, otlp_traces_endpoint=collector.url)
    engine = world.engines["r0"]
    engine.gate = asyncio.Event()
    asking = asyncio.ensure_future(world.client().chat.completions.create(**ASK))
    await world.until(lambda: engine.seen)
    asking.cancel()
    await world.until(world.log_lines)
    await world.gateway.close()
    (span,) = collector.spans["POST /v1/chat/completions"]
    assert (span.status.code, span.status.message) == (2, "client_gone")
    assert world.log_lines()[0]["outcome"] == "client_gone"


@pytest.mark.parametrize("parent", ["garbage", "00-0-0-01", "ff-" + TRACE, "", "\u00e4"])
async def test_a_context_that_is_none_harms_nothing(make_world, collector, parent):
    world = await make_world(1, otlp_traces_endpoint=collector.url)
    async with world.http() as http:
        headers = {"traceparent": parent.encode("latin-1")}
        assert (await http.post("/v1/chat/completions", json=ASK, headers=headers)).status_code == 200
    await world.gateway.close()
    assert len(collector.spans["POST /v1/chat/completions"]) == 1


async def test_without_a_collector_the_clients_context_travels_on_as_it_came(make_world):
    world = await make_world(1)
    async with world.http() as http:
        await http.post("/v1/chat/completions", json=ASK, headers={"traceparent": TRACEPARENT})
    assert world.engines["r0"].seen[0].headers["traceparent"] == TRACEPARENT


async def test_a_collector_that_is_down_costs_no_request(make_world, unused_tcp_port):
    world = await make_world(1, otlp_traces_endpoint=f"http://127.0.0.1:{unused_tcp_port}/v1/traces")
    answers = await asyncio.gather(*(world.client().chat.completions.create(**ASK) for _ in range(5)))
    assert all(answer.choices for answer in answers)


def test_the_context_is_taken_out_to_be_given_another():
    assert without_context([(b"traceparent", b"x"), (b"a", b"b"), (b"tracestate", b"y")]) == [(b"a", b"b")]


def test_without_the_extra_it_says_what_to_install():
    assert make_tracing("", "x") is None
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from quire_api.tracing import make_tracing\n"
        "make_tracing('', 'x')\n"
        "try: make_tracing('http://x', 'x')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(TracingNotInstalled.__name__)
    assert "quire[tracing]" in done.stdout


@pytest.mark.parametrize("endpoint", ["nonsense", "collector:4318", "http://", "http://[", "ftp://collector/v1/traces"])
def test_what_is_no_http_address_is_refused_in_a_sentence(endpoint):
    with pytest.raises(BadTracesEndpoint, match="http://collector:4318/v1/traces"):
        make_tracing(endpoint, "quire-gateway")
