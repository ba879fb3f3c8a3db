"""The routing table at the limit of a Secret, and shared by operators of different namespaces."""

import base64
import secrets

import pytest

SYSTEM = "quire-system"
MANY = 10_000
"""Keys of 64 characters: more than half of what the table takes, compressed."""


def api_keys(name: str, count: int) -> dict:
    data = {f"k{n}": base64.b64encode(secrets.token_urlsafe(48).encode()).decode() for n in range(count)}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


def replace(cluster, namespace, manifest) -> None:
    """`kubectl apply` keeps a copy in an annotation, which holds no more than 256 KiB."""
    cluster.kubectl("delete", "secret", manifest["metadata"]["name"], "-n", namespace, "--ignore-not-found")
    cluster.kubectl("create", "-n", namespace, "-f", "-", given=manifest)


def known(cluster, namespace) -> dict[str, int]:
    """How many keys gateways know, by deployment."""
    return {entry["name"]: len(entry["api_keys"]) for entry in cluster.routes(namespace)}


def test_at_the_limit_who_is_known_stays_and_who_is_refused_is_told(cluster, operator, namespace, tiny, soon):
    for name in ("first", "second"):
        replace(cluster, namespace, api_keys(name, MANY))
    access = {name: {"apiKeysSecretRef": {"name": name}} for name in ("first", "second")}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny("first", access=access["first"]))
    soon(lambda: known(cluster, namespace) == {"first": MANY}, "the first one's keys")

    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny("second", access=access["second"]))
    soon(lambda: cluster.ready("second", namespace)[1] == "RoutingTableFull", "the reason")
    assert "Use fewer API keys" in cluster.ready("second", namespace)[2]
    assert cluster.ready("first", namespace)[1] != "RoutingTableFull"
    assert operator.counted("quire_operator_routing_table_refused") == 1
    assert 500_000 < operator.counted("quire_operator_routing_table_bytes") <= 1_000_000
    events = soon(
        lambda: [e for e in cluster.objects("events", namespace) if e["reason"] == "RoutingTableFull"], "an event"
    )
    assert {event["type"] for event in events} == {"Warning"}
    soon(lambda: cluster.objects("pods", namespace, "quire.dev/deployment=second"), "its pod all the same")

    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny("third"))
    soon(lambda: known(cluster, namespace) == {"first": MANY, "third": 0}, "a small one beside them")
    replace(cluster, namespace, api_keys("second", 10))
    soon(lambda: known(cluster, namespace).get("second") == 10, "room for fewer keys")
    soon(lambda: cluster.ready("second", namespace)[1] != "RoutingTableFull", "the reason to go")
    cluster.kubectl("delete", "llmd", "--all", "-n", namespace)
    soon(lambda: not known(cluster, namespace), "an empty table")


@pytest.fixture
def others(cluster, namespace):
    name = f"{namespace}-b"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def test_operators_of_different_namespaces_leave_each_others_routes(cluster, namespace, others, tiny, soon):
    def flags(served: str) -> list[str]:
        return ["--namespaces", served, "--lease", served, "--routing-secret", f"routing-{namespace}"]

    def routes() -> list[str]:
        found = cluster.routes("", f"routing-{namespace}")
        return sorted(f"{entry['namespace']}/{entry['name']}" for entry in found)

    for served in (namespace, others):
        cluster.kubectl("apply", "-n", served, "-f", "-", given=tiny("kept", model={"servedNames": [served]}))
    both = sorted((f"{namespace}/kept", f"{others}/kept"))
    with cluster.operator("one", *flags(namespace)):
        soon(lambda: f"{namespace}/kept" in routes(), "the first one's route")
        with cluster.operator("two", *flags(others)):
            soon(lambda: routes() == both, "both routes")
            changed = tiny("more", model={"servedNames": [f"{namespace}-more"]})
            cluster.kubectl("apply", "-n", namespace, "-f", "-", given=changed)
            soon(lambda: routes() == sorted([*both, f"{namespace}/more"]), "the addition of the first one")
            cluster.kubectl("delete", "llmd", "kept", "-n", others)
            soon(lambda: routes() == [f"{namespace}/kept", f"{namespace}/more"], "only the second one's route to go")


def test_routes_of_a_namespace_that_nobody_serves_any_more_are_taken_back(cluster, namespace, others, tiny, soon):
    third = f"{namespace}-c"
    cluster.kubectl("create", "namespace", third)

    def flags(lease: str, *served: str) -> list[str]:
        return ["--namespaces", ",".join(served), "--lease", lease, "--routing-secret", f"routing-{namespace}"]

    def routes() -> set[str]:
        return {entry["namespace"] for entry in cluster.routes("", f"routing-{namespace}")}

    try:
        for served in (namespace, others, third):
            cluster.kubectl("apply", "-n", served, "-f", "-", given=tiny(model={"servedNames": [served]}))
        with cluster.operator("wide", *flags(namespace, namespace, others, third)):
            soon(lambda: routes() == {namespace, others, third}, "all routes")
        with cluster.operator("other", *flags(others, others)):
            secret = f"routing-{namespace}"
            takes = f'"{others}": ["{others}"]'
            soon(lambda: takes in str(cluster.get("secret", secret, SYSTEM)["metadata"]), "who takes one over")
            with cluster.operator("narrow", *flags(namespace, namespace)) as narrow:
                soon(lambda: routes() == {namespace, others}, "the route that is nobody's to go")
                assert f"{third}/tiny: its namespace is served no more" in narrow.says
                cluster.kubectl("delete", "llmd", "tiny", "-n", others)
                soon(lambda: routes() == {namespace}, "what both wrote")
    finally:
        cluster.kubectl("delete", "namespace", third, "--wait=false")


def test_a_table_that_was_deleted_or_edited_by_hand_comes_back_though_nothing_else_changes(
    cluster, operator, namespace, tiny, soon
):
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
    soon(lambda: cluster.routes(namespace), "the route")
    cluster.kubectl("delete", "secret", "quire-routing", "-n", SYSTEM)
    soon(lambda: cluster.routes(namespace), "the route again")
    empty = base64.b64encode(b'{"deployments": []}').decode()
    cluster.kubectl("patch", "secret", "quire-routing", "-n", SYSTEM, "-p", f'{{"data": {{"table.json": "{empty}"}}}}')
    soon(lambda: cluster.routes(namespace), "the route once more")
