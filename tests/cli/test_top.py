"""`quire top`: from pages and metrics to a picture."""

import pytest
from rich.console import Console

from quire.top import Picture, samples_of, span, tables
from quire_api import wire


def picture(at: float = 0.0, *, requests: int = 0, engines=None, gateway: str = "g", **replica) -> Picture:
    load = wire.DeploymentLoad(
        deployment="d",
        namespace="n",
        in_flight=3,
        held=1,
        queued_tokens=0,
        requests=requests,
        idle_s=0.0,
        ttft_p50_s=0.25,
        ttft_p90_s=1.5,
        itl_p90_s=0.012,
    )
    told = {"is_routable": True, "in_flight": 3, "queued_tokens": 1200, "url": "http://x", **replica}
    report = wire.ReplicaReport(deployment="d", namespace="n", replica="d-0", **told)
    return Picture(
        at, wire.GatewayLoad(gateway=gateway, deployments=[load]), wire.GatewayReport(replicas=[report]), engines or {}
    )


def metrics(hits: float, lookups: float, tokens: float) -> dict[str, float]:
    return {
        "vllm:num_requests_running": 2,
        "vllm:num_requests_waiting": 1,
        "vllm:kv_cache_usage_perc": 0.4321,
        "vllm:prefix_cache_queries_total": lookups,
        "vllm:prefix_cache_hits_total": hits,
        "vllm:generation_tokens_total": tokens,
    }


def shown(before: Picture | None, now: Picture) -> list[list[str]]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(tables(before, now))
    return [line.split() for line in capture.get().splitlines() if line.strip()]


def test_one_picture_has_totals_and_no_rates():
    _, deployment, _, replica = shown(None, picture(engines={"d-0": metrics(30, 40, 500)}))
    assert deployment == ["d", "1/1", "3", "1", "-", "250ms", "1.5s", "-", "12ms"]
    assert replica == ["d-0", "serving", "3", "1,200", "2", "1", "43.2%", "75%", "-"]


def test_two_pictures_have_rates_over_the_time_between():
    before = picture(10.0, requests=100, engines={"d-0": metrics(30, 40, 500)})
    _, deployment, _, replica = shown(before, picture(12.0, requests=105, engines={"d-0": metrics(31, 50, 700)}))
    assert deployment[4] == "2.5"
    assert replica[-2:] == ["10%", "100"]  # 1 of 10 looked up, 200 tokens in 2 s


def test_counters_of_a_new_engine_begin_at_zero():
    before = picture(10.0, engines={"d-0": metrics(30, 40, 500)})
    assert shown(before, picture(12.0, engines={"d-0": metrics(1, 2, 20)}))[3][-2:] == ["50%", "10"]


def test_a_new_gateway_has_no_rate_yet():
    assert shown(picture(10.0, requests=100, gateway="old"), picture(12.0, requests=3))[1][4] == "-"


@pytest.mark.parametrize(
    ("replica", "state"),
    [
        ({"reason": "Draining"}, "draining"),
        ({"reason": "Ejected: timeout", "is_routable": False}, "ejected"),
        ({"is_routable": False}, "new"),
    ],
)
def test_states_and_engines_out_of_reach(replica, state):
    assert shown(None, picture(**replica))[3] == ["d-0", state, "3", "1,200", *["-"] * 5]


def test_metrics_are_read_from_the_exposition():
    text = (
        "# HELP vllm:num_requests_running Sequences.\n"
        'vllm:num_requests_running{engine="0",model_name="a b}"} 2.0\n'
        'vllm:generation_tokens_total{engine="0"} 5\nvllm:generation_tokens_total{engine="1"} 6\n'
        "vllm:other 9\nvllm:kv_cache_usage_perc 1e-1\n"
    )
    assert samples_of(text) == {
        "vllm:num_requests_running": 2.0,
        "vllm:generation_tokens_total": 11.0,
        "vllm:kv_cache_usage_perc": 0.1,
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.00085, "850us"), (0.012, "12ms"), (1.25, "1.25s"), (119.0, "119s"), (600.0, "10m")],
)
def test_times_read_at_a_glance(seconds, text):
    assert span(seconds) == text
