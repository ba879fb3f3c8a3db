"""Whose GPU is touched while an engine is still being imported; a stand-in counts what the driver is asked."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest

from quire_runtime.engine import gpu_context
from quire_runtime.engine.gpu_context import make_context

NO_DEVICE = 100


class Driver:
    """CUDA's, with one GPU or none."""

    def __init__(self, init: int) -> None:
        self.init = init
        self.asked: list[str] = []

    def cuInit(self, flags: int) -> int:
        self.asked.append("init")
        return self.init

    def cuDeviceGet(self, number: object, ordinal: int) -> int:
        self.asked.append(f"device {ordinal}")
        return 0

    def cuDevicePrimaryCtxRetain(self, context: object, number: object) -> int:
        self.asked.append("context")
        return 0


@pytest.fixture
def torch_for_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Its library."""
    library = tmp_path / "lib" / "libtorch_cuda.so"
    library.parent.mkdir()
    library.touch()
    origin = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(gpu_context, "find_spec", lambda name: origin)
    return library


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, torch_for_cuda: Path) -> Driver:
    stand_in = Driver(init=0)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: stand_in)
    return stand_in


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_the_first_visible_gpu_has_a_context(driver: Driver, device: str):
    make_context(device)
    assert driver.asked == ["init", "device 0", "context"]


def test_no_gpu_is_touched_for_an_engine_on_the_cpu(driver: Driver):
    make_context("cpu")
    assert driver.asked == []


def test_no_gpu_is_touched_for_a_torch_that_cannot_use_it(driver: Driver, torch_for_cuda: Path):
    torch_for_cuda.unlink()
    make_context("auto")
    assert driver.asked == []


def test_where_all_gpus_are_hidden_nothing_is_made_nor_said(driver: Driver):
    driver.init = NO_DEVICE
    make_context("cuda")
    assert driver.asked == ["init"]


def test_without_a_driver_nothing_is_made_nor_said(monkeypatch: pytest.MonkeyPatch, torch_for_cuda: Path):
    monkeypatch.setattr(gpu_context, "DRIVER", "libno-such-driver.so.1")
    make_context("auto")
