"""What the operator is made of, each part told of those it works with."""

import contextlib
import secrets
import socket
from dataclasses import dataclass

from quire_api.connection import Connection
from quire_operator.agents import Agents
from quire_operator.build_pod import Settings
from quire_operator.config import OperatorConfig
from quire_operator.gateways import Gateways
from quire_operator.kube import Kube
from quire_operator.kubernetes_world import Cluster
from quire_operator.lease import Lease
from quire_operator.nodes import Nodes
from quire_operator.reconcile import Reconciler
from quire_operator.routing import Routing
from quire_operator.store import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """What runs, or is asked by what runs."""

    connection: Connection
    identity: str
    """Name of this process among operators."""
    kube: Kube
    """Writes only while the lease is held."""
    lease: Lease
    store: Store
    gateways: Gateways
    agents: Agents
    routing: Routing
    reconciler: Reconciler


def assemble(config: OperatorConfig, connection: Connection, closing: contextlib.AsyncExitStack) -> Parts:
    """Put the parts together; nothing runs yet. `closing` closes their connections."""
    home = config.namespace or connection.namespace
    identity = config.identity or f"{socket.gethostname()}-{secrets.token_hex(3)}"
    labels = dict(pair.split("=", 1) for pair in config.gateway_labels.split(","))
    store = Store()
    duration_s = config.lease_duration_s
    unfenced = Kube(connection)
    lease = Lease(unfenced, home, config.lease, identity, duration_s=duration_s, renew_s=duration_s / 4)
    kube = Kube(connection, lease.is_held) if config.leader_elect else Kube(connection)
    reconciler: Reconciler
    routing = Routing(
        kube, home, config.routing_secret, config.namespaces, lambda keys: reconciler.wake(keys), config.lease
    )
    gateways = Gateways(
        kube,
        lambda keys: reconciler.wake(keys or store.keys()),
        namespace=home,
        labels=labels,
        port=config.gateway_port,
        internal_key=config.internal_key,
        addresses=config.gateway_addresses,
    )
    agents = Agents(lambda keys: reconciler.wake(keys), config.agent_port)
    for part in (unfenced, kube, gateways, agents):
        closing.push_async_callback(part.close)
    settings = Settings(
        engine_image=config.engine_image,
        agent_image=config.agent_image,
        image_pull_policy=config.image_pull_policy,
        image_pull_secrets=tuple(config.image_pull_secrets),
        gpu_resource=config.gpu_resource,
        gateway_namespace=home,
        gateway_labels=labels,
        agent_port=config.agent_port,
        monitoring_namespace=config.monitoring_namespace,
    )
    url = config.gateway_url or f"http://quire-gateway.{home}.svc"
    cluster = Cluster(kube, store, gateways, agents, Nodes(kube), routing, settings, f"{url}/v1")
    reconciler = Reconciler(cluster, identity, config.renewals, config.renewal_patience_s)
    return Parts(connection, identity, kube, lease, store, gateways, agents, routing, reconciler)
