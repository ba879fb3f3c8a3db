"""What Helm does to a cluster that serves."""

import shlex
from collections import Counter

import installation
from client import SYSTEM, Client
from cluster.layout import REPOSITORY
from replicas import watched
from scenario import apply, ask, load, names, restarts, serve

LONG = 1900
"""Tokens of streams that outlast the time a replica is given to drain."""
PAGE = REPOSITORY / "docs" / "kubernetes.md"


def documented(command: str) -> list[str]:
    """A command of Helm's as the page says it under "Upgrade and rollback"."""
    section = PAGE.read_text().split("\n## Upgrade and rollback\n")[1]
    line = next(line for line in section.splitlines() if line.startswith(f"helm {command} "))
    return [str(REPOSITORY / part) if part == "charts/quire" else part for part in shlex.split(line)[1:]]


def knows_volumes(cluster: Client) -> bool:
    """Whether the CRD has `spec.model.volume`, which the first release lacks."""
    (version,) = cluster.get("crd", "llmdeployments.quire.dev", SYSTEM)["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return "volume" in spec["properties"]["model"]["properties"]


def test_upgrade_from_the_first_release_and_rollback_as_documented_fail_nothing_and_restart_no_engine(
    cluster, namespace, tiny, soon, install
):
    cluster.helm("uninstall", "quire", "-n", SYSTEM, "--wait")
    install(installation.FORMER_CHART)
    former = installation.images_of(cluster, installation.FORMER_CHART)
    added = [flag for flag in installation.images_of(cluster) if flag not in former]
    try:
        assert not knows_volumes(cluster)
        model = serve(cluster, soon, tiny())
        before = restarts(cluster, namespace)
        with load(cluster, model, clients=2) as traffic:
            begun = traffic.begun
            cluster.helm(*documented("upgrade"), *installation.WAIT, *added)
            assert knows_volumes(cluster)
            assert not cluster.get("hpa", "quire-gateway", SYSTEM), "a value that was set is lost"
            soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
            soon(lambda: traffic.answered(after=begun), "streams of now to be answered")
            begun = traffic.begun
            cluster.helm(*documented("rollback"), *installation.WAIT)
            assert not knows_volumes(cluster)
            soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
            soon(lambda: traffic.answered(after=begun), "streams of now to be answered")
        assert restarts(cluster, namespace) == before
    finally:
        install()
    assert traffic.failed == []
    assert restarts(cluster, namespace) == before
    assert "[DONE]" in ask(cluster, model)


def test_uninstalling_leaves_resources_and_pods_and_installing_again_takes_them_over(
    cluster, namespace, tiny, soon, install
):
    model = serve(cluster, soon, tiny())
    before = restarts(cluster, namespace)
    cluster.helm("uninstall", "quire", "-n", SYSTEM, "--wait")
    try:
        assert cluster.get("llmd", "tiny", namespace)
        assert restarts(cluster, namespace) == before
    finally:
        install()
    soon(lambda: "[DONE]" in ask(cluster, model), "an answer")
    assert restarts(cluster, namespace) == before


def test_an_upgrade_that_makes_every_pod_another_fails_nothing_and_leaves_no_model_without_its_replicas(
    cluster, namespace, tiny, soon, install
):
    resources = [tiny(name, engine={"maxModelLen": 2048}, rollout={"drainTimeout": "0s"}) for name in ("one", "two")]
    for resource in resources:
        apply(cluster, resource)
    one, two = (serve(cluster, soon, resource) for resource in resources)
    former = set(names(cluster.pods(namespace)))
    struck: Counter[str] = Counter()

    def are_exchanged() -> bool:
        ready = [replicas.ready(name) for name in ("one", "two")]
        return all(len(found) == 1 and not found & former for found in ready)

    try:
        # One model's streams keep one of two cores busy; those of both would leave little for what is exchanged.
        with load(cluster, one, clients=2, tokens=LONG) as traffic:

            def strike(pod: str) -> None:
                struck[pod] = traffic.streaming()[pod]

            with watched(cluster, namespace, strike) as replicas:
                soon(lambda: replicas.ready("one") | replicas.ready("two") == former, "the watch")
                begun = traffic.begun
                # Operator, gateways and engines, as with images of another name.
                install(values=["images.pullSecrets={nobody}"])
                soon(are_exchanged, "a replica of the new operator for each of the former one's")
                soon(lambda: not former & set(names(cluster.objects("pods", namespace))), "the former ones to end")
                soon(lambda: traffic.answered(after=begun), "streams of now to be answered")
        assert "[DONE]" in ask(cluster, two)
        assert traffic.failed == []
        assert replicas.fewest == {"one": 1, "two": 1}
        assert replicas.left == {"one": 1, "two": 1}
        assert struck.total() > 0
    finally:
        cluster.kubectl("delete", "llmd", "--all", "-n", namespace)
        install()
