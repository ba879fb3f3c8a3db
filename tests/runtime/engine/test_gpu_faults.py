"""What a user reads when the GPU is missing, too old, full or lost; the GPU is a stand-in."""

import pytest
import torch

from quire_runtime.config import EngineConfig
from quire_runtime.engine import load as loading
from quire_runtime.engine.faults import diagnose
from quire_runtime.engine.load import NoSuchDevice, UnsupportedGPU, load, pick_device
from quire_runtime.execute.memory import out_of_memory, plan_memory, remarks, require_room
from quire_runtime.model.config import ModelConfig
from quire_runtime.model.errors import DoesNotFit

GiB = 2**30


@pytest.fixture
def gpu(monkeypatch):
    """Sets a stand-in for a GPU: its capability, and its memory in GiB."""

    def set_up(capability=(9, 0), free=100.0, total=140.0):
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * GiB), int(total * GiB)))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)

    return set_up


def config(**settings):
    return EngineConfig.of(model="m", **settings)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by",
            "no GPU here: The NVIDIA driver on your system is too old (found version 11040). Use device cpu",
        ),
        ("No CUDA GPUs are available", "no GPU here: No CUDA GPUs are available. Use device cpu"),
    ],
)
def test_a_missing_gpu_or_an_old_driver_is_told(monkeypatch, tmp_path, reason, told):
    monkeypatch.setattr(loading, "DEVICE_FILES", tmp_path)

    def fail():
        raise RuntimeError(reason)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(NoSuchDevice) as caught:
        pick_device(config(device="cuda"))
    assert told in str(caught.value)
    assert pick_device(config()).type == "cpu"


@pytest.fixture
def old_driver(monkeypatch, tmp_path):
    """A torch for CUDA that can use no GPU, and a folder of device files."""

    def fail():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fail)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(loading, "DEVICE_FILES", tmp_path)
    for name in loading.HIDING:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_gpu_that_is_there_and_cannot_be_used_is_no_reason_to_serve_from_the_cpu(old_driver, monkeypatch):
    (old_driver / "nvidiactl").touch()
    assert pick_device(config()).type == "cpu", "a driver without a GPU"
    (old_driver / "nvidia0").touch()
    with pytest.raises(
        NoSuchDevice, match=r"has a GPU \(.*nvidia0\), .* is too old .* Mend the driver, or serve on th"
    ):
        pick_device(config())
    assert pick_device(config(device="cpu")).type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert pick_device(config()).type == "cpu", "who hides a GPU does not want it"


def test_a_torch_for_cpus_only_says_that_it_does_not_use_the_gpu(old_driver, monkeypatch, caplog):
    (old_driver / "nvidia0").touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert pick_device(config()).type == "cpu"
    assert "nvidia0: not used" in caplog.text


def test_a_gpu_too_old_for_the_kernels_is_refused_before_anything_is_loaded(gpu):
    gpu(capability=(7, 0))
    with pytest.raises(UnsupportedGPU, match=r"Tesla V100 has compute capability 7\.0, .* need 8\.0"):
        pick_device(config())
    assert pick_device(config(device="cpu")).type == "cpu"
    gpu(capability=(8, 0))
    assert pick_device(config()).type == "cuda"


def test_weights_beside_another_engine_on_the_same_gpu(gpu, tiny_model_dir):
    gpu(free=0.0, total=140.0)
    with pytest.raises(DoesNotFit, match=r"are free; other processes hold 140\.0 GiB\. End them, or give each engine"):
        load(EngineConfig.of(model=str(tiny_model_dir("llama"))))


def test_weights_larger_than_the_gpu(gpu):
    gpu(free=79.0, total=80.0)
    device = torch.device("cuda", 0)
    require_room(config(), device, 79 * GiB)
    with pytest.raises(
        DoesNotFit, match=r"need 130\.0 GiB, but of the GPU's 80\.0 GiB 79\.0 are free\. Use a larger GPU"
    ):
        require_room(config(), device, 130 * GiB)


@pytest.fixture
def plan(tiny_model_dir):
    """A plan for a model of 2,048 positions whose weights have a GiB, on the stand-in. A block has 12,288 bytes."""
    facts = ModelConfig.from_directory(tiny_model_dir("llama", max_position_embeddings=2048))

    def make(**settings):
        settings = {"max_num_seqs": 4, **settings}
        return plan_memory(config(**settings), facts, torch.float32, torch.device("cuda", 0), GiB, GiB // 2)

    make.facts = facts
    return make


def test_a_window_beside_another_engine_on_the_same_gpu(gpu, plan):
    gpu(free=2.0, total=140.0)
    # A GiB each for weights and the reserve: half a GiB too little for the largest step already.
    with pytest.raises(DoesNotFit) as caught:
        plan(max_model_len=2048)
    assert "0.00 of the GPU's 140.0 GiB are left; other processes hold 138.0 GiB." in str(caught.value)
    assert "give each engine a GPU of its own or a smaller gpu_memory_utilization" in str(caught.value)


def test_blocks_by_hand_beside_another_engine_on_the_same_gpu(gpu, plan):
    gpu(free=14.0, total=140.0)
    # 14 free, less weights, workspace and reserve of 2.5 GiB: 11.5 GiB are 1,004,885 blocks.
    assert plan(num_gpu_blocks_override=1_000_000).free >= 0
    with pytest.raises(DoesNotFit, match=r"there are 11\.50 GiB; other processes hold 126\.0 GiB\. End them"):
        plan(num_gpu_blocks_override=6_000_000)
    with pytest.raises(DoesNotFit, match=r"there are 11\.50 GiB\. Lower kv_cache_memory or num_gpu_blocks_override"):
        plan(num_gpu_blocks_override=60_000_000)


def test_the_budget_shows_what_others_hold_and_what_is_left(gpu, plan):
    gpu(free=14.0, total=140.0)
    made = plan(num_gpu_blocks_override=4 * GiB // 12288)
    assert "  others       126.000 GiB  other processes, and the driver" in made.table()
    assert "  free           7.500 GiB" in made.table()
    assert any("hold 126.0 of the GPU's 140.0 GiB" in remark for remark in remarks(config(), plan.facts, made))
    gpu(free=139.5, total=140.0)
    assert remarks(config(), plan.facts, plan()) == [], "a driver's half GiB is no neighbour"


def test_two_engines_share_a_gpu_by_their_shares(gpu, plan):
    shares = {"gpu_memory_utilization": 0.4, "max_num_seqs": 16384, "max_model_len": 2048}
    gpu(free=140.0, total=140.0)
    alone = plan(**shares)
    gpu(free=84.0, total=140.0)  # the other one took its 0.4
    assert plan(**shares).num_blocks == alone.num_blocks


def test_a_share_that_is_too_small_is_not_blamed_on_others(gpu, plan):
    gpu(free=100.0, total=140.0)
    with pytest.raises(DoesNotFit, match=r"are left\. Lower max_model_len, raise gpu_memory_utilization or use a larg"):
        plan(max_model_len=2048, gpu_memory_utilization=0.01)


def test_memory_that_runs_out_during_the_start_is_the_users_to_mend(monkeypatch, tiny_model_dir):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")

    monkeypatch.setattr(loading, "measure_workspace", fail)
    with pytest.raises(DoesNotFit) as caught:
        load(EngineConfig.of(model=str(tiny_model_dir("llama")), device="cpu"))
    assert "ran out during the start (memory; CUDA out of memory. Tried to allocate 2.00 GiB)" in str(caught.value)
    assert "Lower kv_cache_memory or max_num_batched_tokens, or use a machine" in str(caught.value)


def test_memory_that_runs_out_during_the_start_on_a_gpu(gpu):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")
    gpu(free=1.0, total=140.0)
    told = str(out_of_memory(config(), torch.device("cuda", 0), "graphs", error))
    assert "(graphs; CUDA out of memory. Tried to allocate 2.00 GiB); the GPU has 140.0 GiB; other pro" in told
    assert told.endswith("or a smaller gpu_memory_utilization.")
    gpu(free=139.0, total=140.0)
    told = str(out_of_memory(config(), torch.device("cuda", 0), "graphs", error))
    assert told.endswith(
        "the GPU has 140.0 GiB. Lower gpu_memory_utilization or max_num_batched_tokens, or use a larger GPU."
    )


class AcceleratorError(RuntimeError):
    """As torch names what a lost GPU raises."""


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "reason", "told"),
    [
        (AcceleratorError("CUDA error: uncorrectable ECC error\nCUDA kernel errors might"), "GPULost", "dmesg"),
        (RuntimeError("CUDA error: unspecified launch failure"), "GPULost", "start the engine again"),
        (OutOfMemoryError("CUDA out of memory. Tried 2.00 GiB"), "OutOfMemory", "Lower gpu_memory_utilization"),
        (ValueError("3 blocks lost"), "EngineDied", "ValueError: 3 blocks lost"),
    ],
)
def test_last_words_are_one_paragraph_with_a_next_step(error, reason, told):
    fault = diagnose(error)
    assert fault.reason == reason
    assert told in fault.message
    assert "\n" not in fault.message
