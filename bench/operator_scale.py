"""The operator with many LLMDeployments on a real control plane with fake nodes: memory, CPU, time, requests.

    python bench/operator_scale.py --deployments 1000 --output bench/results/operator.json

Needs what `make cluster-up` builds. Fake pods never load a model; a file says that gateways route to every pod.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from cluster import control_plane, daemon, network, pki, teardown
from cluster.layout import API_PORT, REPOSITORY, Layout

NODES = 10
IDLE_S = 300.0
"""The operator looks at ready deployments again, and compares lists, every 300 s (LOOK_AGAIN_ANYWAY_S, EVERY_S)."""
CHANGES = 100
NAMESPACE = "models"
OPERATOR_PORT = 9300
REPORT_PORT = 9100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployments", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    layout = Layout(name=f"quire-bench-{os.getpid()}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            _start(layout, Path(folder))
            result = _measure(layout, Path(folder), options.deployments)
        finally:
            daemon.stop(layout, "reports")
            teardown.down(layout)
    result["date"] = datetime.now(UTC).date().isoformat()
    result["machine"] = {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_average_5m": round(os.getloadavg()[1], 1),
    }
    result["command"] = f"python bench/operator_scale.py --deployments {options.deployments}"
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def _start(layout: Layout, folder: Path) -> None:
    network.create(layout)
    pki.write_pki(layout)
    control_plane.start(layout)
    daemon.start(
        layout,
        "kwok",
        [
            "kwok",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--cidr=10.245.0.0/16",
            "--node-ip=10.245.255.1",
            "--node-lease-duration-seconds=40",
            "--server-address=127.0.0.1:10247",
            f"--kubeconfig={layout.kubeconfig()}",
        ],
    )
    reports = folder / "internal" / "v1" / "replicas"
    reports.parent.mkdir(parents=True)
    reports.write_text('{"replicas": []}')
    server = [sys.executable, "-m", "http.server", str(REPORT_PORT), "--directory", str(folder)]
    daemon.start(layout, "reports", server)
    _kubectl(layout, "create", "namespace", NAMESPACE)
    _kubectl(layout, "create", "namespace", "quire-system")
    _kubectl(layout, "apply", "--server-side", "-f", str(REPOSITORY / "crds"))
    _kubectl(layout, "wait", "--for=condition=Established", "crd/llmdeployments.quire.dev")
    _kubectl(layout, "apply", "-f", "-", given=[_node(number) for number in range(NODES)])


def _measure(layout: Layout, folder: Path, count: int) -> dict[str, Any]:
    operator = subprocess.Popen(
        [
            *layout.inside,
            *(sys.executable, "-m", "quire_operator", "--kubeconfig", str(layout.kubeconfig())),
            *("--namespace", "quire-system", "--port", str(OPERATOR_PORT)),
            *("--gateway-addresses", f"http://127.0.0.1:{REPORT_PORT}"),
        ],
        stderr=(folder / "operator.log").open("w"),
    )
    try:
        time.sleep(5.0)
        process = psutil.Process(operator.pid)
        result: dict[str, Any] = {"deployments": count, "empty_rss_mb": _rss(process)}
        before = _cpu(layout, process)
        began = time.monotonic()
        for first in range(0, count, 250):
            wishes = [_wish(number) for number in range(first, min(first + 250, count))]
            _kubectl(layout, "create", "-f", "-", given=wishes)
        result["create_s"] = round(time.monotonic() - began, 1)
        # Whole lists cost the API server a second of CPU each: first only their length.
        while _count(layout, "/apis/apps/v1") < count or len(_observed(layout)) < count:
            time.sleep(1.0)
        result["reconcile_all_s"] = round(time.monotonic() - began, 1)
        after = _cpu(layout, process)
        result["reconcile_all_cpu_s"] = {name: round(after[name] - before[name], 1) for name in after}
        result["api_requests_per_deployment"] = round(_requests(layout) / count, 1)
        result["api_requests_per_reconcile"] = round(_requests(layout) / _total(layout, "reconciles"), 2)
        while _count(layout, "/api/v1", "pods") < count:
            time.sleep(1.0)
        _route(folder, _json(layout, "get", "pods", "-n", NAMESPACE)["items"])
        while sum(_ready(item) for item in _json(layout, "get", "llmd", "-n", NAMESPACE)["items"]) < count:
            time.sleep(3.0)
        result["ready_all_s"] = round(time.monotonic() - began, 1)
        time.sleep(10.0)
        result["rss_mb"] = _rss(process)
        cpu, at, requests = process.cpu_times(), time.monotonic(), _requests(layout)
        time.sleep(IDLE_S)
        spent = sum(process.cpu_times()[:2]) - sum(cpu[:2])
        elapsed = time.monotonic() - at
        result["idle_s"] = round(elapsed, 1)
        result["idle_cpu_percent"] = round(100 * spent / elapsed, 2)
        result["idle_api_requests_per_s"] = round((_requests(layout) - requests) / elapsed, 2)
        result |= _changes(layout, count)
        result["peak_rss_mb"] = _peak_rss(process)
        return result
    finally:
        operator.terminate()
        operator.wait(30)


def _changes(layout: Layout, count: int) -> dict[str, Any]:
    """From a changed spec at the API server to the changed Deployment, as their managed fields say."""
    before = _requests(layout)
    took = []
    for number in range(min(CHANGES, count)):
        name = f"model-{number}"
        change = json.dumps({"spec": {"replicas": 2}})
        began = time.monotonic()
        _kubectl(layout, "patch", "llmd", name, "-n", NAMESPACE, "--type=merge", "-p", change)
        patched = time.monotonic()
        while True:
            found = _kubectl(
                layout,
                "get",
                "deploy",
                "-n",
                NAMESPACE,
                "-l",
                f"quire.dev/deployment={name}",
                "-o",
                "jsonpath={.items[*].spec.replicas}",
            )
            if "2" in found:
                break
        took.append((time.monotonic() - began, patched - began))
    seen = sorted(whole - patch for whole, patch in took)
    return {
        "change_to_deployment_s": {
            "p50": round(statistics.median(seen), 3),
            "p99": round(seen[int(len(seen) * 0.99) - 1], 3),
            "note": "includes one or more runs of kubectl get",
        },
        "api_requests_per_change": round((_requests(layout) - before) / len(seen), 1),
    }


def _count(layout: Layout, group: str, plural: str = "deployments") -> int:
    """How many objects there are, without fetching them, and without a start of kubectl's (a tenth of a second)."""
    pki = layout.pki
    admin = ["--cacert", f"{pki}/ca.crt", "--cert", f"{pki}/admin.crt", "--key", f"{pki}/admin.key"]
    url = f"https://127.0.0.1:{API_PORT}{group}/namespaces/{NAMESPACE}/{plural}?limit=1"
    found = json.loads(daemon.run(layout, ["curl", "-s", *admin, url]).stdout)
    return len(found["items"]) + int(found["metadata"].get("remainingItemCount", 0))


def _observed(layout: Layout) -> list[str]:
    """Deployments whose children exist and whose status is about the newest spec."""
    made = {
        item["metadata"]["labels"]["quire.dev/deployment"]
        for item in _json(layout, "get", "deploy", "-n", NAMESPACE)["items"]
    }
    items = _json(layout, "get", "llmd", "-n", NAMESPACE)["items"]
    return [
        item["metadata"]["name"]
        for item in items
        if item["metadata"]["name"] in made
        and item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"]
    ]


def _ready(item: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in item.get("status", {}).get("conditions", []))


def _route(folder: Path, pods: list[dict[str, Any]]) -> None:
    replicas = [
        {
            "deployment": pod["metadata"]["labels"]["quire.dev/deployment"],
            "namespace": NAMESPACE,
            "replica": pod["metadata"]["name"],
            "is_routable": True,
            "in_flight": 0,
        }
        for pod in pods
    ]
    beside = folder / "next"
    beside.write_text(json.dumps({"replicas": replicas}))
    beside.replace(folder / "internal" / "v1" / "replicas")


def _requests(layout: Layout) -> float:
    """Requests to the API server that the operator's own client has made (watches are kopf's)."""
    return _total(layout, "api_requests")


def _total(layout: Layout, counter: str) -> float:
    """Of all labels of one of the operator's counters."""
    done = daemon.run(layout, ["curl", "-s", f"http://127.0.0.1:{OPERATOR_PORT}/metrics"])
    lines = re.findall(rf"^quire_operator_{counter}_total\{{.*\}} (\S+)$", done.stdout, re.M)
    return sum(float(value) for value in lines)


def _cpu(layout: Layout, operator: psutil.Process) -> dict[str, float]:
    """Seconds of CPU that each part has used so far; kubectl's many short runs are not among them."""
    pids = {name: int((layout.state / "pid" / name).read_text()) for name in [*control_plane.NAMES, "kwok"]}
    parts = {"operator": operator, **{name: psutil.Process(pid) for name, pid in pids.items()}}
    return {name: sum(process.cpu_times()[:2]) for name, process in parts.items()}


def _cpu_model() -> str:
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return str(names[0]) if names else platform.machine()


def _rss(process: psutil.Process) -> float:
    return round(process.memory_info().rss / 2**20, 1)


def _peak_rss(process: psutil.Process) -> float:
    (kib,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{process.pid}/status").read_text(), re.M)
    return round(int(kib) / 2**10, 1)


def _json(layout: Layout, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_kubectl(layout, *arguments, "-o", "json"))
    return found


def _kubectl(layout: Layout, *arguments: str, given: list[dict[str, Any]] | None = None) -> str:
    environment = {**os.environ, "PATH": daemon.search_path(layout), "KUBECONFIG": str(layout.kubeconfig())}
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": given}) if given else None
    done = subprocess.run(
        [*layout.inside, "kubectl", *arguments], env=environment, input=text, capture_output=True, text=True, check=True
    )
    return done.stdout


def _wish(number: int) -> dict[str, Any]:
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": f"model-{number}", "namespace": NAMESPACE},
        "spec": {
            "model": {"source": "file:///models/tiny"},
            "engine": {"device": "cpu"},
            "resources": {"cpu": "10m", "memory": "16Mi"},
        },
    }


def _node(number: int) -> dict[str, Any]:
    sizes = {"cpu": "64", "memory": "256Gi", "pods": "1000"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": f"fake-{number}",
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/hostname": f"fake-{number}"},
        },
        "status": {"allocatable": sizes, "capacity": sizes},
    }


if __name__ == "__main__":
    main()
