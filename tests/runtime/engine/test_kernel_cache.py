"""Where compiled kernels are kept; the GPU is a stand-in."""

import os

import pytest
import torch

from quire_runtime.engine.kernel_cache import VARIABLE, folder_of, use_kernel_cache

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def sm_90(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv(VARIABLE, "as it was")


def test_each_set_of_versions_and_each_gpu_has_a_folder_of_its_own():
    versions = {"quire": "0.2.0", "torch": "2.11.0", "triton": "3.6.0"}
    assert folder_of(versions, "sm_90") == "quire-0.2.0-torch-2.11.0-triton-3.6.0-sm_90"


def test_triton_finds_the_folder_of_this_gpu(tmp_path):
    from triton import knobs

    use_kernel_cache(str(tmp_path / "kernels"), GPU)
    [folder] = (tmp_path / "kernels").iterdir()
    assert folder.name.endswith("-sm_90")
    assert f"-torch-{torch.__version__}-" in folder.name
    assert knobs.cache.dir == str(folder)


def test_a_cache_that_cannot_be_written_is_told_and_does_no_harm(tmp_path, caplog):
    (tmp_path / "file").touch()
    use_kernel_cache(str(tmp_path / "file"), GPU)
    assert "not kept in" in caplog.text
    assert os.environ[VARIABLE] == "as it was"


def test_nothing_changes_without_the_setting_or_without_a_gpu(tmp_path):
    use_kernel_cache(None, GPU)
    use_kernel_cache(str(tmp_path / "kernels"), torch.device("cpu"))
    assert os.environ[VARIABLE] == "as it was"
    assert not list(tmp_path.iterdir())
