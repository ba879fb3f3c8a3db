"""The engine as the endpoint picker of the gateway-API inference extension reads it.

The model server protocol (docs/proposals/003-model-server-protocol of kubernetes-sigs/gateway-api-inference-extension)
names what a picker reads from /metrics, and its default flags name vLLM's metrics. The picker parses the text format,
takes of a gauge the newest sample, of `lora_requests_info` the one of the largest value (a timestamp), and turns labels
into integers; so does this test.
"""

import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def families(server):
    answer = httpx.get(f"{server.url}/metrics", timeout=60.0)
    assert answer.headers["content-type"].startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def newest(family):
    """The sample that the picker takes: without timestamps the first."""
    assert family.type == "gauge"
    assert all(sample.timestamp is None for sample in family.samples)
    assert len(family.samples) == 1, "which of several is meant, no picker could tell"
    return family.samples[0]


@pytest.mark.parametrize("name", ["num_requests_waiting", "num_requests_running"])
def test_queued_and_running_requests_are_whole_numbers(families, name):
    value = newest(families[f"vllm:{name}"]).value
    assert value >= 0
    assert value == int(value)


def test_the_use_of_the_kv_cache_is_a_share(families):
    assert 0.0 <= newest(families["vllm:kv_cache_usage_perc"]).value <= 1.0


def test_the_shape_of_the_cache_is_in_labels_that_are_integers(families):
    labels = newest(families["vllm:cache_config_info"]).labels
    assert int(labels["block_size"]) == 16
    assert int(labels["num_gpu_blocks"]) == 400


def test_adapters_are_lists_in_labels_and_the_value_is_when(families):
    family = families["vllm:lora_requests_info"]
    assert family.type == "gauge"
    latest = max(family.samples, key=lambda sample: sample.value)
    assert abs(time.time() - latest.value) < 3600
    assert int(latest.labels["max_lora"]) >= 0
    for name in ("running_lora_adapters", "waiting_lora_adapters"):
        assert [each for each in latest.labels[name].split(",") if each] == []


def test_what_queues_is_counted_as_queued(server):
    """The names alone would not do: a picker steers by what they say."""
    waiting = [server.metric(f"{prefix}:num_requests_waiting") for prefix in ("vllm", "quire")]
    assert waiting[0] == waiting[1]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_both_apis_of_the_protocol_are_served(server, path):
    body = {"model": "tiny", "max_tokens": 1}
    body |= {"prompt": "one"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "one"}]}
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60.0)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 1
