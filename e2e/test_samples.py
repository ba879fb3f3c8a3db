"""The manifests that stand ready to be applied."""

import re
from pathlib import Path

import pytest
import yaml
from client import SYSTEM
from cluster.layout import REPOSITORY
from conftest import IN_THE_IMAGE, MOUNTED
from scenario import ask, serve

MANIFESTS = REPOSITORY / "manifests"
SAMPLES = sorted((MANIFESTS / "samples").glob("*.yaml"))
DRY_RUN = ("apply", "--dry-run=server", "--validate=strict", "-o", "name")


def count(file: Path) -> int:
    return sum(document is not None for document in yaml.safe_load_all(file.read_text()))


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: file.name)
def test_a_sample_is_taken_by_the_api_server(cluster, namespace, file):
    taken = cluster.kubectl(*DRY_RUN, "-n", namespace, "-f", str(file)).split()
    assert len(taken) == count(file)


def test_the_resources_of_the_page_are_taken_by_the_api_server(cluster, namespace):
    blocks = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs" / "kubernetes.md").read_text(), re.DOTALL)
    given = [document for block in blocks for document in yaml.safe_load_all(block)]
    taken = cluster.kubectl(*DRY_RUN, "-n", namespace, "-f", "-", given=given).split()
    assert len(taken) == len(given) >= 3


def test_the_plain_manifests_are_taken_by_the_api_server(cluster):
    file = MANIFESTS / "quire.yaml"
    # What Helm has installed in the same namespace is Helm's; without a dry run it would not be there.
    taken = cluster.kubectl(*DRY_RUN, "--server-side", "--force-conflicts", "-f", str(file)).split()
    assert len(taken) == count(file)
    assert f"namespace/{SYSTEM}" in taken


def test_the_tiny_sample_serves(cluster, namespace, soon):
    sample = yaml.safe_load((MANIFESTS / "samples" / "quire-tiny-kubernetes.yaml").read_text())
    sample["metadata"]["namespace"] = namespace
    sample["spec"]["model"]["servedNames"] = [f"quire-tiny-{namespace}"]
    assert sample["spec"]["model"]["source"] == f"file://{IN_THE_IMAGE}"
    if cluster.is_repository_mounted:
        sample["spec"]["model"]["source"] = f"file://{REPOSITORY}/models/quire-tiny"
        sample["spec"]["podTemplate"] = MOUNTED
    assert "[DONE]" in ask(cluster, serve(cluster, soon, sample))
