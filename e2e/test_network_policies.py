"""Network policies, where the cluster's network enforces them: who reaches an engine, and who does not."""

from functools import partial

import bystander
from client import SYSTEM
from scenario import GATEWAY, ask, serve


def test_gateways_and_the_named_monitoring_reach_an_engine_and_nobody_else(
    cluster, namespace, new_namespace, tiny, soon, install
):
    monitoring, elsewhere = new_namespace(), new_namespace()
    bystanders = (namespace, monitoring, elsewhere)
    bystander.place(cluster, *bystanders)
    model = serve(cluster, soon, tiny())
    (engine,) = cluster.pods(namespace)
    (gateway, *_) = cluster.pods(SYSTEM, GATEWAY)
    reaches = partial(bystander.reaches, cluster)

    assert [reaches(place, gateway) for place in bystanders] == [True, True, True]
    bystander.wait_until_kept_out(cluster, engine, bystanders)
    assert reaches(SYSTEM, engine, pod=gateway["metadata"]["name"])
    assert "[DONE]" in ask(cluster, model)

    try:
        install(values=[f"monitoring.namespace={monitoring}"])
        soon(lambda: reaches(monitoring, engine), "monitoring to be let in")
        assert not any(reaches(place, engine) for place in (namespace, elsewhere))
    finally:
        install()
    soon(lambda: not reaches(monitoring, engine), "monitoring to be kept out again")
