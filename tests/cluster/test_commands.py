"""What `make cluster-up` and `make cluster-down` run, with a control plane alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import traces
from cluster.layout import Layout

E2E = Path(__file__).parents[2] / "e2e"


@pytest.fixture
def layout():
    return Layout(name=f"quire-commands-{os.getpid()}")


@pytest.fixture
def command(possible, layout):
    """Runs `python -m cluster` for a cluster of its own name."""

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(E2E), "QUIRE_CLUSTER": layout.name}
        done = subprocess.run(
            [sys.executable, "-m", "cluster", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    yield run
    run("down", check=False)


def of(layout: Layout, lines: list[str]) -> list[str]:
    """Those of this cluster; others change the machine meanwhile."""
    return [line for line in lines if layout.name in line]


def test_a_cluster_that_came_up_by_command_goes_down_by_command_and_leaves_nothing(command, layout):
    if not (layout.binaries / "kube").exists():
        command("build", "--no-tools")
    before = traces.read(layout)
    command("up", "--control-plane")
    assert "kube-system" in command("exec", "kubectl", "get", "namespaces").stdout
    again = command("up", "--control-plane", check=False)
    assert (again.returncode, "is up already" in again.stderr) == (2, True)
    assert {line.split()[0] for line in of(layout, traces.new(layout, before))} >= {"process", "file"}
    command("down")
    assert of(layout, traces.new(layout, before)) == []


def test_a_cluster_of_which_the_control_plane_was_killed_goes_down_all_the_same(command, layout):
    if not (layout.binaries / "kube").exists():
        command("build", "--no-tools")
    before = traces.read(layout)
    command("up", "--control-plane")
    pid = int((layout.state / "pid" / "kube-apiserver").read_text())
    os.kill(pid, 9)
    command("down")
    command("down")
    assert of(layout, traces.new(layout, before)) == []
