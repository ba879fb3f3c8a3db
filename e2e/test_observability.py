"""A real Prometheus scrapes the cluster's own pods: no panel or rule lacks data, and `quire doctor` is content."""

import json
import subprocess
import sys

import pytest
from client import SYSTEM, VISITORS
from prometheus import Prometheus, Target
from scenario import ask, load, serve


def targets(cluster, namespace) -> list[Target]:
    """Every port that a container of Quire's pods declares."""
    found = []
    for place in (SYSTEM, namespace):
        for pod in cluster.pods(place, "app.kubernetes.io/name"):
            labels = pod["metadata"]["labels"]
            spec = pod["spec"]
            for container in [*spec["containers"], *spec.get("initContainers", [])]:
                for port in container.get("ports", []):
                    found.append(
                        Target(
                            f"{pod['status']['podIP']}:{port['containerPort']}",
                            labels["app.kubernetes.io/name"],
                            port["name"],
                            place,
                            pod["metadata"]["name"],
                            labels.get("quire.dev/deployment", ""),
                        )
                    )
    return found


@pytest.fixture
def quire(cluster):
    """Runs the command as the cluster's admin."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*cluster.inside, sys.executable, "-m", "quire", *arguments]
        return subprocess.run(
            command, env=cluster.environment, capture_output=True, text=True, timeout=300, check=False
        )

    return run


@pytest.fixture
def scraping(cluster, install):
    """Where Prometheus asks from the visitors' namespace, that is let in."""
    if not cluster.is_visiting:
        yield
        return
    install(values=[f"monitoring.namespace={VISITORS}"])
    yield
    install()


@pytest.mark.usefixtures("scraping")
def test_every_panel_and_every_rule_has_data_under_load(cluster, namespace, tiny, soon, tmp_path):
    model = serve(cluster, soon, tiny(replicas=2))
    with load(cluster, model):
        prometheus = Prometheus(cluster, tmp_path, targets(cluster, namespace))
        try:
            assert prometheus.wait(prometheus.unhealthy) == []
            # What the load does not bring: an edit, refusals at both doors, and a prompt of which nothing is cached.
            cluster.kubectl("annotate", "llmd", "tiny", "-n", namespace, "example.com/edited=true")
            cluster.request(f"{cluster.gateway}/nonsense")
            assert "error" in ask(cluster, model, "word " * 3000)
            assert "[DONE]" in ask(cluster, model, "word " * 100)
            assert "\n".join(prometheus.wait(prometheus.silent)) == ""
        finally:
            prometheus.stop()


def test_doctor_finds_no_error_and_every_cache_known_exactly(cluster, namespace, tiny, soon, quire):
    serve(cluster, soon, tiny())

    def are_known() -> bool:
        done = quire("doctor", "-n", namespace, "-o", "json")
        levels = {finding["code"]: finding["level"] for finding in json.loads(done.stdout)["findings"]}
        return done.returncode == 0 and levels["QD010"] == "ok"

    soon(are_known, "no error, and every cache")


def test_logs_of_a_pod_are_shown(cluster, namespace, tiny, soon, quire):
    serve(cluster, soon, tiny())
    done = quire("logs", "tiny", "-n", namespace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
