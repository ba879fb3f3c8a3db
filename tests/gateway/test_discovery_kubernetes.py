"""Which pods a gateway routes to. The watch itself is tested on a real API server, in tests/cluster."""

import pytest

from quire_api import wire
from quire_gateway.config import GatewayConfig
from quire_gateway.discovery_kubernetes import replica_of, with_replicas
from quire_gateway.gateway import Gateway, NoDiscovery


def pod(name="tiny-1", *, ready=True, address="10.0.0.7", annotations=None, port=None, **metadata):
    containers = [{"name": "engine", "ports": [{"name": "http", "containerPort": port}]}] if port else []
    return {
        "metadata": {
            "name": name,
            "namespace": "models",
            "labels": {"quire.dev/deployment": "tiny"},
            "annotations": annotations or {},
            **metadata,
        },
        "spec": {"containers": containers},
        "status": {
            "podIP": address,
            "conditions": [
                {"type": "Ready", "status": "False"},
                {"type": "ContainersReady", "status": "True" if ready else "False"},
            ],
        },
    }


def test_a_pod_counts_from_ready_containers_on_though_its_gate_is_closed():
    assert replica_of(pod()) == wire.Replica(id="tiny-1", url="http://10.0.0.7:8000")
    assert replica_of(pod(ready=False)) is None
    assert replica_of(pod(address=None)) is None


def test_addresses_of_both_families_and_named_ports():
    assert replica_of(pod(address="fd00::7", port=9000)).url == "http://[fd00::7]:9000"


@pytest.mark.parametrize(
    "leaving",
    [
        {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        {"annotations": {"quire.dev/drain-deadline": "1"}},
        {"annotations": {"quire.dev/stopping": "true"}},
    ],
    ids=["deleted", "draining", "stopping"],
)
def test_a_pod_that_leaves_gets_nothing_new(leaving):
    assert replica_of(pod(**leaving)).is_draining


def test_pods_join_their_deployment_and_strangers_nothing():
    table = wire.RoutingTable(deployments=[wire.Deployment(name="tiny", namespace="models", served_names=["tiny"])])
    stranger = pod("other")
    stranger["metadata"]["labels"] = {"quire.dev/deployment": "unknown"}
    joined = with_replicas(table, [pod("b"), pod("a"), stranger])
    assert [replica.id for replica in joined.deployments[0].replicas] == ["a", "b"]


def test_a_gateway_without_any_table_says_what_to_give_it():
    with pytest.raises(NoDiscovery, match="--kubernetes-table NAMESPACE/SECRET"):
        Gateway(GatewayConfig())
