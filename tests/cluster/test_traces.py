"""What a cluster could leave on the machine is seen, each kind of it, and gone once it is taken away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import traces
from cluster.layout import Layout

CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def layout(tmp_path):
    if os.geteuid():
        pytest.skip("needs root")
    return Layout(name=f"quire-traces-{os.getpid()}", home=tmp_path)


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def of(layout: Layout, lines: frozenset[str]) -> set[str]:
    """Kinds of what is there of this cluster; others change the machine meanwhile."""
    return {line.split(maxsplit=1)[0] for line in lines if layout.name in line}


def test_each_kind_of_leftover_is_seen_and_nothing_once_it_is_gone(layout):
    assert of(layout, traces.read(layout)) == set()
    layout.state.mkdir()
    root = next(path for path in (CGROUPS / "pids", CGROUPS) if path.is_dir())
    mounted, group = layout.state / "mounted", root / layout.name
    mounted.mkdir()
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", f"{layout.state}/etc"])
    try:
        run("mount", "-t", "tmpfs", "none", mounted)
        run("ip", "netns", "add", layout.name)
        group.mkdir()
        found = traces.read(layout)
        assert of(layout, found) == {"process", "mount", "file", "cgroup"}
        assert {f"file {layout.namespace}", f"file {layout.state}", f"cgroup {group}", f"mount {mounted}"} <= found
    finally:
        process.kill()
        process.wait()
        run("ip", "netns", "delete", layout.name)
        run("umount", mounted)
        mounted.rmdir()
        layout.state.rmdir()
        group.rmdir()
    assert of(layout, traces.read(layout)) == set()


def test_settings_rules_and_links_of_the_machine_are_read(layout):
    lines = traces.read(layout)
    assert {"sysctl vm/overcommit_memory", "sysctl kernel/panic"} <= {line.partition(" =")[0] for line in lines}
    assert "link lo" in lines
