"""What Helm does to a cluster that serves."""

import shlex

import installation
from client import SYSTEM, Client
from cluster.layout import REPOSITORY
from scenario import ask, load, restarts, serve

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
            assert traffic.answered(after=begun) > 0
            begun = traffic.begun
            cluster.helm(*documented("rollback"), *installation.WAIT)
            assert not knows_volumes(cluster)
            soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
            assert traffic.answered(after=begun) > 0
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
