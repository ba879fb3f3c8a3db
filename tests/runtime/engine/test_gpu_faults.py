"""What a user reads when the GPU is missing, too old, full or lost; the GPU is a stand-in."""

import pytest
import torch

from quire_runtime.config import EngineConfig
from quire_runtime.engine.faults import diagnose
from quire_runtime.engine.load import NoSuchDevice, UnsupportedGPU, load, pick_device
from quire_runtime.execute.memory import DoesNotFit, require_room

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
def test_a_missing_gpu_or_an_old_driver_is_told(monkeypatch, reason, told):
    def fail():
        raise RuntimeError(reason)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(NoSuchDevice) as caught:
        pick_device(config(device="cuda"))
    assert told in str(caught.value)
    assert pick_device(config()).type == "cpu"


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
