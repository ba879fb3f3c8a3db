"""What scenarios do on a cluster of which they have a kubeconfig and nothing else: they ask from a pod."""

import dataclasses

import bystander
import pytest
from client import SYSTEM, VISITORS
from cluster.layout import REPOSITORY
from prometheus import Prometheus, Target
from scenario import GATEWAY, ask, load, serve
from stores import Hub


@pytest.fixture
def visitor(cluster):
    """The cluster, reached through its API server alone."""
    if cluster.is_visiting:
        yield cluster
        return
    cluster.kubectl("create", "namespace", VISITORS)
    bystander.place(cluster, VISITORS)
    yield dataclasses.replace(cluster, is_visiting=True)
    cluster.kubectl("delete", "namespace", VISITORS, "--wait=false")


def test_a_pod_of_visitors_serves_weights_sends_streams_and_lets_prometheus_in(visitor, tiny, soon, tmp_path):
    hub = Hub(visitor, tmp_path / "hub.log", REPOSITORY / "models" / "quire-tiny")
    resource = tiny(model=hub.model())
    resource["spec"]["podTemplate"] = hub.pod_template(resource["spec"].get("podTemplate", {}))
    model = serve(visitor, soon, resource)
    gateways = [
        Target(f"{pod['status']['podIP']}:8000", "quire-gateway", "http", SYSTEM, pod["metadata"]["name"])
        for pod in visitor.pods(SYSTEM, GATEWAY)
    ]
    prometheus = Prometheus(visitor, tmp_path, gateways)
    try:
        with load(visitor, model) as traffic:
            assert "[DONE]" in ask(visitor, model)
            assert prometheus.wait(prometheus.unhealthy) == []
        assert traffic.failed == []
    finally:
        prometheus.stop()
        hub.stop()
    assert hub.downloads() == 1
