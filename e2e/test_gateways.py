"""The gateways behind one Service count as one."""

import base64
import json
import time
from typing import Any
from urllib.parse import urlencode

from client import SYSTEM, Client
from scenario import GATEWAY, addresses, load, names, serve, wait_for_metrics


def in_flight(cluster: Client, address: str, model: str) -> int | None:
    """Requests at the model's replicas, as this gateway would count them for its next choice; None: it knows none."""
    key = base64.b64decode(cluster.get("secret", "quire-internal", SYSTEM)["data"]["key"]).decode()
    question = urlencode({"model": model, "message": "Once"})
    said = cluster.request(f"{address}/debug/route?{question}", headers={"x-quire-internal-key": key})
    replicas = json.loads(said or "{}").get("replicas")
    return sum(replica["in_flight"] for replica in replicas) if replicas else None


def test_what_one_gateway_has_in_flight_counts_at_the_other(cluster, namespace, tiny, soon):
    model = serve(cluster, soon, tiny())
    here, there = soon(lambda: len(found := addresses(cluster)) == 2 and list(found.values()), "two ready gateways")
    with load(cluster, model, gateway=f"{here}/v1") as traffic:
        soon(lambda: in_flight(cluster, there, model), "the streams of one to count at the other")
    assert traffic.failed == []
    soon(lambda: in_flight(cluster, there, model) == 0, "the ended streams to be forgotten")


def test_a_gateway_deleted_under_load_fails_nothing_and_the_next_one_knows_the_load(cluster, namespace, tiny, soon):
    model = serve(cluster, soon, tiny())
    before = soon(lambda: len(found := addresses(cluster)) == 2 and found, "two ready gateways")
    leaving, staying = before
    with load(cluster, model) as traffic:
        begun = traffic.begun
        cluster.kubectl("delete", "pod", leaving, "-n", SYSTEM, "--wait=false")
        soon(lambda: leaving not in names(cluster.objects("pods", SYSTEM, GATEWAY)), "the deleted gateway to end")
        after = soon(lambda: len(found := addresses(cluster)) == 2 and found, "two ready gateways")
        (new,) = after.keys() - {staying}
        for address in (after[new], after[staying]):
            soon(lambda address=address: in_flight(cluster, address, model), "the load to count at each gateway")
        soon(lambda: traffic.answered(after=begun), "streams of now to be answered")
    assert traffic.failed == []


def test_an_autoscaler_adds_gateways_under_load_by_their_own_cpu(cluster, namespace, tiny, soon, install, record):
    wait_for_metrics(cluster, soon)
    model = serve(cluster, soon, tiny())

    def autoscaler() -> dict[str, Any]:
        return cluster.get("hpa", "quire-gateway", SYSTEM).get("status", {})

    def utilization() -> int | None:
        metrics = autoscaler().get("currentMetrics") or [{}]
        return metrics[0].get("resource", {}).get("current", {}).get("averageUtilization")

    scaling = ("enabled=true", "maxReplicas=3", "targetCPU=10")
    try:
        install(values=[f"gateway.autoscaling.{setting}" for setting in scaling])
        soon(lambda: utilization() is not None, "the gateways' CPU to be known")
        with load(cluster, model) as traffic:
            begun, began = traffic.begun, time.monotonic()
            soon(lambda: (utilization() or 0) > 10, "more CPU than the target")
            soon(lambda: len(addresses(cluster)) == 3, "a third gateway")
            record("load -> a third gateway ready", time.monotonic() - began)
            soon(lambda: traffic.answered(after=begun), "streams of now to be answered")
        assert traffic.failed == []
    finally:
        install()
    assert not autoscaler()
    soon(lambda: len(addresses(cluster)) == 2, "two gateways")
