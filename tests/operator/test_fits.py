"""The arithmetic of what fits, on models whose sizes are known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_api.v1alpha1 import from_object
from quire_api.wire import ModelShape
from quire_operator.fits import GiB, Memory, fit_of, memory_of, worst
from quire_operator.world import Fit

QWEN3_8B = ModelShape(
    architecture="Qwen3ForCausalLM",
    weight_bytes=16_381_470_720,  # 15.3 GiB of bfloat16
    value_bytes=2,
    kv_values_per_token=2 * 36 * 8 * 128,  # 144 KiB a token
    max_positions=40_960,
)


def wish(gpus: int = 1, **engine):
    spec = {"model": {"source": "hf://Qwen/Qwen3-8B"}, "engine": engine, "resources": {"gpus": gpus}}
    metadata = {"name": "qwen3", "namespace": "models"}
    return from_object(
        {"apiVersion": "quire.dev/v1alpha1", "kind": "LLMDeployment", "metadata": metadata, "spec": spec}
    )


def gpu(size_gib: float) -> Memory:
    return Memory(size_gib * GiB, True, "a GPU of node n1 has")


def ram(size_gib: float) -> Memory:
    return Memory(size_gib * GiB, False, "the memory limit is")


@pytest.mark.parametrize(
    ("engine", "size_gib", "fits"),
    [
        ({}, 80, True),
        ({}, 16, False),  # 0.88 * 16 = 14.1 < 15.3
        ({}, 18, True),  # 15.8, and the window shrinks to what is left
        ({"maxModelLen": 16_384}, 18, False),  # 16,384 tokens: 2.25 GiB, 0.6 are left
        ({"maxModelLen": 16_384}, 24, True),  # 21.1 - 15.3 = 5.9
        ({"maxModelLen": 16_384, "kvCache": {"memory": "0.7"}}, 24, False),  # 0.68 * 24 = 16.3
        ({"maxModelLen": 16_384, "extraArgs": ["--gpu-memory-utilization=0.7"]}, 24, False),
        ({"dtype": "float32"}, 24, False),  # 30.5 GiB of weights
        ({"dtype": "float32"}, 40, True),
    ],
)
def test_a_gpu_holds_weights_and_the_cache_of_one_sequence_or_does_not(engine, size_gib, fits):
    assert fit_of(wish(**engine), QWEN3_8B, gpu(size_gib)).fits is fits


def test_the_message_holds_the_arithmetic_and_the_way_out():
    said = fit_of(wish(maxModelLen=16_384), QWEN3_8B, gpu(18))
    assert said.message == (
        "weights need 15.3 GiB, one sequence of 16384 tokens 2.3 GiB and overhead 0.4 GiB, but a GPU of node n1 has "
        "18.0 GiB, of which 0.6 GiB are left for the cache. Lower engine.maxModelLen, or use a larger GPU."
    )


@pytest.mark.parametrize(
    ("engine", "size_gib", "fits"),
    [
        ({}, 16, True),
        ({}, 15, False),
        ({"maxModelLen": 16_384}, 20, False),  # a quarter of 20 - 15.3 - 0.25: 1.1 GiB for 2.3
        ({"maxModelLen": 16_384}, 32, True),
        ({"maxModelLen": 16_384, "kvCache": {"memory": "3Gi"}}, 20, True),  # by hand it may be more than a quarter
    ],
)
def test_without_a_gpu_the_memory_limit_counts(engine, size_gib, fits):
    assert fit_of(wish(0, **engine), QWEN3_8B, ram(size_gib)).fits is fits


def test_a_window_beyond_the_model_never_fits():
    said = fit_of(wish(maxModelLen=50_000), QWEN3_8B, None)
    assert said.fits is False
    assert "the model's own limit of 40960 positions" in said.message


def test_without_the_memorys_size_nothing_is_claimed():
    assert fit_of(wish(), QWEN3_8B, None) == Fit(
        None, "the weights take 15.3 GiB; the node has no label with its GPU memory, so the engine will tell"
    )
    assert fit_of(wish(0), QWEN3_8B, None).fits is None


def test_of_several_verdicts_the_worst_is_told():
    no, unknown, yes = Fit(False, "no"), Fit(None, "?"), Fit(True, "yes")
    assert worst([yes, unknown, no]) == no
    assert worst([yes, unknown]) == unknown
    assert worst([]) is None


def pod(limits: dict, name: str = "engine") -> dict:
    return {"spec": {"nodeName": "n1", "containers": [{"name": name, "resources": {"limits": limits}}]}}


@pytest.mark.parametrize(
    ("limits", "labels", "resource", "size_gib", "is_gpu"),
    [
        ({"nvidia.com/gpu": "1"}, {"nvidia.com/gpu.memory": "81559"}, "nvidia.com/gpu", 79.6, True),
        (
            {"nvidia.com/mig-1g.10gb": 1},
            {"nvidia.com/mig-1g.10gb.memory": "9728"},
            "nvidia.com/mig-1g.10gb",
            9.5,
            True,
        ),
        ({"amd.com/gpu": "1"}, {"amd.com/gpu.vram": "192G"}, "amd.com/gpu", 192, True),
        ({"memory": "8Gi"}, {"nvidia.com/gpu.memory": "81559"}, "nvidia.com/gpu", 8, False),
        ({"memory": "8Gi", "nvidia.com/gpu": "0"}, {}, "nvidia.com/gpu", 8, False),
    ],
)
def test_where_the_memory_is_read(limits, labels, resource, size_gib, is_gpu):
    memory = memory_of(pod(limits), labels, resource)
    assert memory.size / GiB == pytest.approx(size_gib, abs=0.05)
    assert memory.is_gpu is is_gpu


@pytest.mark.parametrize(
    ("body", "labels"),
    [
        (pod({"nvidia.com/gpu": "1", "memory": "8Gi"}), {}),
        (pod({"nvidia.com/gpu": "1"}), {"nvidia.com/gpu.memory": "much"}),
        (pod({"memory": "nonsense"}), {}),
        (pod({"memory": "8Gi"}, name="other"), {}),
        (pod({}), {}),
        ({}, {}),
    ],
)
def test_where_it_cannot_be_read_it_is_not_known(body, labels):
    assert memory_of(body, labels, "nvidia.com/gpu") is None


@given(
    size=st.floats(0, 1000),
    more=st.floats(0, 1000),
    window=st.one_of(st.none(), st.integers(1, 40_960)),
    is_gpu=st.booleans(),
    share=st.sampled_from([None, "0.5", "4Gi"]),
)
def test_more_memory_never_turns_a_fit_into_none(size, more, window, is_gpu, share):
    engine = {key: value for key, value in (("maxModelLen", window),) if value} | (
        {"kvCache": {"memory": share}} if share else {}
    )
    small, large = (Memory((size + extra) * GiB, is_gpu, "") for extra in (0, more))
    deployment = wish(int(is_gpu), **engine)
    assert fit_of(deployment, QWEN3_8B, small).fits <= fit_of(deployment, QWEN3_8B, large).fits
