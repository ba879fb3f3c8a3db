"""The manifests for those who install without Helm."""

import importlib.util
import os
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
_found = importlib.util.spec_from_file_location("plain", REPOSITORY / "charts" / "plain.py")
plain = importlib.util.module_from_spec(_found)
_found.loader.exec_module(plain)


def test_they_are_what_the_chart_renders():
    if plain.helm() is None:
        assert os.environ.get("CI") != "true"
        pytest.skip("Helm is not built; `make cluster-build` builds it")
    assert plain.TARGET.read_text() == plain.manifests(plain.helm()), "run `make manifests`"


def test_they_hold_no_key_and_nothing_that_only_helm_reads():
    text = plain.TARGET.read_text()
    objects = list(yaml.safe_load_all(text))
    assert [found["kind"] for found in objects[:2]] == ["Namespace", "CustomResourceDefinition"]
    assert "Secret" not in {found["kind"] for found in objects}
    assert "helm.sh/" not in text
    assert {"Deployment", "ClusterRole", "PodDisruptionBudget", "NetworkPolicy"} <= {found["kind"] for found in objects}
