"""What Helm does to a cluster that serves."""

import installation
from client import SYSTEM
from scenario import ask, load, restarts, serve


def test_upgrading_from_the_chart_of_the_first_release_fails_nothing(cluster, namespace, tiny, soon, install, tmp_path):
    cluster.helm("uninstall", "quire", "-n", SYSTEM, "--wait")
    install(installation.FORMER_CHART)
    try:
        model = serve(cluster, soon, tiny())
        with load(cluster, model, tmp_path, clients=2) as traffic:
            install()
            soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
    finally:
        install()
    assert traffic.failed == []
    assert traffic.answered > 0
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
