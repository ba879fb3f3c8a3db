"""What `helm upgrade` writes over what is there, on a real API server."""

import os
import subprocess

from tests.cluster.conftest import DEADLINE_S, REPOSITORY, daemon


def helm(cluster, namespace: str, *flags: str) -> str:
    """What Helm says."""
    environment = {**os.environ, "PATH": daemon.search_path(cluster.layout)}
    environment["KUBECONFIG"] = str(cluster.layout.kubeconfig())
    chart = str(REPOSITORY / "charts" / "quire")
    settings = [f"--set={flag}" for flag in ("crds.install=false", f"namespaces={{{namespace}}}", *flags)]
    command = [*cluster.layout.inside, "helm", "upgrade", "--install", "quire", chart, "-n", namespace, *settings]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=cluster.folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_gateways_autoscaler_begins_with_the_replicas_that_there_are_and_an_upgrade_leaves_it_its_number(
    cluster, namespace
):
    def replicas() -> int:
        return cluster.get("deployment", "quire-gateway", namespace)["spec"]["replicas"]

    helm(cluster, namespace, "gateway.autoscaling.enabled=false", "gateway.replicas=3")
    assert replicas() == 3
    helm(cluster, namespace, "gateway.autoscaling.enabled=true", "gateway.replicas=2")
    assert cluster.get("hpa", "quire-gateway", namespace)["spec"]["minReplicas"] == 2
    assert replicas() == 3
    cluster.kubectl("scale", "deployment/quire-gateway", "-n", namespace, "--replicas=6")
    helm(cluster, namespace, "gateway.autoscaling.enabled=true", "gateway.replicas=2", "gateway.drainSeconds=200")
    assert replicas() == 6
    helm(cluster, namespace, "gateway.autoscaling.enabled=true", "gateway.replicas=7")
    assert replicas() == 7


def test_no_operator_and_no_gateway_can_be_had_and_are_warned_of(cluster, namespace):
    assert "WARNING" not in helm(cluster, namespace, "gateway.replicas=1")
    told = helm(cluster, namespace, "operator.replicas=0", "gateway.replicas=0")
    assert "operator.replicas is 0" in told
    assert "gateway.replicas is 0" in told
    assert not cluster.objects("hpa,pdb", namespace)
    for name in ("quire-operator", "quire-gateway"):
        assert cluster.get("deployment", name, namespace)["spec"]["replicas"] == 0
