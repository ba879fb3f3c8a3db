"""What a cluster changes on the machine outside of its own folders, and takes back."""

import pytest
from cluster import machine
from cluster.layout import Layout


@pytest.fixture
def layout(tmp_path, monkeypatch):
    found = Layout(name="quire-machine", home=tmp_path)
    found.state.mkdir(parents=True)
    folders = tuple(str(tmp_path / name) for name in ("cni", "kubelet"))
    monkeypatch.setattr(machine, "SHARED_FOLDERS", folders)
    monkeypatch.setattr(machine, "OTHER_CONTAINERD", tmp_path / "other.sock")
    return found


def test_folders_that_were_there_before_stay_and_others_go(layout, tmp_path):
    (tmp_path / "cni").mkdir()
    machine.remember_folders(layout)
    (tmp_path / "cni" / "results").mkdir()
    (tmp_path / "kubelet" / "device-plugins").mkdir(parents=True)
    machine.remove_folders(layout)
    assert (tmp_path / "cni" / "results").is_dir()
    assert not (tmp_path / "kubelet").exists()


def test_folders_that_others_make_later_are_theirs_though_the_state_is_kept(layout, tmp_path):
    machine.remember_folders(layout)
    machine.remove_folders(layout)
    (tmp_path / "kubelet").mkdir()
    machine.remove_folders(layout)
    assert (tmp_path / "kubelet").is_dir()


def test_with_another_containerd_nothing_is_removed(layout, tmp_path):
    machine.remember_folders(layout)
    (tmp_path / "kubelet").mkdir()
    (tmp_path / "other.sock").touch()
    machine.remove_folders(layout)
    assert (tmp_path / "kubelet").is_dir()


def test_a_cluster_that_never_came_up_has_nothing_to_remove(layout, tmp_path):
    (tmp_path / "kubelet").mkdir()
    machine.remove_folders(layout)
    assert (tmp_path / "kubelet").is_dir()
