"""Network policies, enforced on the node: who reaches an engine, and who does not."""

from functools import partial

import bystander
from client import SYSTEM
from scenario import GATEWAY, ask, serve


def test_gateways_and_the_named_monitoring_reach_an_engine_and_nobody_else(
    node, namespace, new_namespace, tiny, soon, install
):
    monitoring, elsewhere = new_namespace(), new_namespace()
    bystanders = (namespace, monitoring, elsewhere)
    bystander.place(node, *bystanders)
    model = serve(node, soon, tiny())
    (engine,) = node.pods(namespace)
    (gateway, *_) = node.pods(SYSTEM, GATEWAY)
    reaches = partial(bystander.reaches, node)

    assert [reaches(place, gateway) for place in bystanders] == [True, True, True]
    soon(lambda: not any(reaches(place, engine) for place in bystanders), "the engine to be closed to bystanders")
    assert reaches(SYSTEM, engine, pod=gateway["metadata"]["name"])
    assert "[DONE]" in ask(node, model)

    try:
        install(values=[f"monitoring.namespace={monitoring}"])
        soon(lambda: reaches(monitoring, engine), "monitoring to be let in")
        assert not any(reaches(place, engine) for place in (namespace, elsewhere))
    finally:
        install()
    soon(lambda: not reaches(monitoring, engine), "monitoring to be kept out again")
