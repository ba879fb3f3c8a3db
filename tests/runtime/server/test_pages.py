"""Tokenizer, status, metrics and internal pages of a running server."""

import msgspec
import pytest
from safetensors.numpy import load_file

from quire_api.wire import ModelInfo
from quire_text.bundle import TokenizerBundle
from quire_text.tokenizer import Tokenizer

ALIASED = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "num_requests_waiting_by_reason",
    "cache_config_info",
    "lora_requests_info",
    "prompt_tokens_total",
    "generation_tokens_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "num_preemptions_total",
    "prompt_tokens_cached_total",
    "corrupted_requests_total",
    "iteration_tokens_total_bucket",
    "request_queue_time_seconds_bucket",
    "request_prefill_time_seconds_bucket",
    "request_decode_time_seconds_bucket",
    "request_inference_time_seconds_bucket",
    "request_params_n_bucket",
    "request_params_max_tokens_bucket",
    "request_success_total",
    "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_bucket",
    "request_time_per_output_token_seconds_bucket",
    "e2e_request_latency_seconds_bucket",
    "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket",
)


def test_tokenize_and_detokenize(server, model_directory):
    tokenizer = Tokenizer.from_directory(model_directory)
    with server.http() as http:
        answer = http.post(
            "/tokenize", json={"model": "tiny", "prompt": "Köln is old", "return_token_strs": True}
        ).json()
        assert answer["tokens"] == tokenizer.encode("Köln is old")
        assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
        assert answer["max_model_len"] == 4096
        back = http.post("/detokenize", json={"model": "tiny", "tokens": answer["tokens"]}).json()
        assert back == {"prompt": "Köln is old"}
        chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}).json()
        assert tokenizer.decode(chat["tokens"], skip_special_tokens=False).endswith("<|im_start|>assistant\n")
        for path, body in (("/tokenize", {}), ("/detokenize", {"tokens": [10**6]}), ("/detokenize", {"tokens": "x"})):
            assert http.post(path, json=body).status_code == 400


def test_probes_and_version(server):
    with server.http() as http:
        assert http.get("/health").status_code == 200
        assert http.get("/ready").status_code == 200
        assert http.get("/version").json()["version"]


def test_what_gateways_need(server, model_directory):
    with server.http() as http:
        info = msgspec.json.decode(http.get("/internal/v1/model").content, type=ModelInfo)
        packed = http.get("/internal/v1/tokenizer")
        again = http.get("/internal/v1/tokenizer", headers={"if-none-match": packed.headers["etag"]})
    bundle = TokenizerBundle.unpack(packed.content)
    assert info.served_names == ["tiny", "small"]
    assert info.tokenizer_digest == bundle.digest == TokenizerBundle.from_directory(model_directory).digest
    assert packed.headers["etag"] == f'"{bundle.digest}"'
    assert again.status_code == 304
    assert info.block_size == 16
    assert info.model_revision
    assert info.engine_epoch
    assert info.architecture == "Qwen3ForCausalLM"
    stored = [load_file(path) for path in model_directory.glob("*.safetensors")]
    assert info.num_parameters == sum(tensor.size for tensors in stored for tensor in tensors.values())


@pytest.mark.parametrize("prefix", ["quire", "vllm"])
@pytest.mark.parametrize("name", ALIASED)
def test_metrics_carry_both_names(server, prefix, name):
    assert server.metric(f"{prefix}:{name}", model_name="tiny") is not None


def test_metrics_count_what_was_asked(server, client):
    names = ("quire:prompt_tokens_total", "vllm:generation_tokens_total", "quire:e2e_request_latency_seconds_count")
    before = [server.metric(name) for name in names]
    ended = server.metric("vllm:request_success_total", finished_reason="length")
    usage = client.completions.create(
        model="tiny", prompt="one two three", max_tokens=5, extra_body={"ignore_eos": True}
    ).usage
    after = [server.metric(name) for name in names]
    grown = [new - old for old, new in zip(before, after, strict=True)]
    assert grown == [usage.prompt_tokens, 5, 1]
    assert server.metric("vllm:request_success_total", finished_reason="length") == ended + 1
    assert server.metric("quire:startup_seconds", phase="total") > 0
    assert 0 <= server.metric("quire:kv_waste_ratio") < 1
    assert server.metric("vllm:cache_config_info", block_size="16", num_gpu_blocks="400") == 1


PHASES = ("queue", "prefill", "decode", "inference")


def test_the_time_of_a_request_is_told_by_phase(server, client):
    def seen(suffix: str) -> dict[str, float]:
        return {phase: server.metric(f"vllm:request_{phase}_time_seconds_{suffix}") for phase in PHASES}

    counts, sums = seen("count"), seen("sum")
    latency = server.metric("vllm:e2e_request_latency_seconds_sum")
    steps, tokens = (server.metric(f"vllm:iteration_tokens_total_{suffix}") for suffix in ("count", "sum"))
    usage = client.completions.create(
        model="tiny",
        prompt=["seven words that nobody has asked before", "eight"],
        max_tokens=20,
        extra_body={"ignore_eos": True},
    ).usage
    assert {phase: now - counts[phase] for phase, now in seen("count").items()} == dict.fromkeys(PHASES, 2)
    spent = {phase: now - sums[phase] for phase, now in seen("sum").items()}
    assert spent["inference"] == pytest.approx(spent["prefill"] + spent["decode"])
    assert min(spent["prefill"], spent["decode"]) > 0 <= spent["queue"]
    # Two prompts of one request, side by side: each lived no longer than the request did.
    whole = server.metric("vllm:e2e_request_latency_seconds_sum") - latency
    assert spent["queue"] + spent["inference"] <= 2 * whole
    stepped = server.metric("vllm:iteration_tokens_total_count") - steps
    assert 20 <= stepped <= 2 * 20
    assert (
        server.metric("vllm:iteration_tokens_total_sum") - tokens == usage.prompt_tokens + usage.completion_tokens - 2
    )


def test_each_metric_is_described_once(server):
    described = [line.split()[2] for line in server.http().get("/metrics").text.splitlines() if "# HELP" in line]
    assert len(described) == len(set(described))
    assert "process_resident_memory_bytes" in described
