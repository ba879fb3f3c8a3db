"""What docs/kubernetes.md and docs/security.md name is there: values, fields, rights, findings, files."""

import re
from pathlib import Path

import pytest
import yaml

from quire.doctor.findings import TITLES
from quire_api.v1alpha1 import from_object

ROOT = Path(__file__).parents[2]
KUBERNETES = (ROOT / "docs" / "kubernetes.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
RUNBOOKS = {file.name: file.read_text() for file in (ROOT / "docs" / "runbooks").glob("*.md")}
VALUES = yaml.safe_load((ROOT / "charts" / "quire" / "values.yaml").read_text())
PAGES = {"kubernetes.md": KUBERNETES, "security.md": SECURITY, **RUNBOOKS}


def rights_table() -> str:
    text = (ROOT / "charts" / "quire" / "templates" / "operator-rbac.yaml").read_text()
    rules = yaml.safe_load(text.split('"quire.operatorRules" -}}')[1].split("{{- end }}")[0])
    lines = ["| group | resources | verbs |", "| --- | --- | --- |"]
    for rule in rules:
        cells = (", ".join(rule[part]) for part in ("apiGroups", "resources", "verbs"))
        lines.append("| " + " | ".join(cell or "core" for cell in cells) + " |")
    return "\n".join(lines)


def further_rights_table() -> str:
    """What the chart's roles give besides, where no namespaces are listed."""
    roles = [
        document
        for document in yaml.safe_load_all((ROOT / "manifests" / "quire.yaml").read_text())
        if document and document["kind"] in ("Role", "ClusterRole")
    ]
    lines = ["| who | role | group | resources | names | verbs |", "| --- | --- | --- | --- | --- | --- |"]
    for role in roles:
        for rule in role["rules"]:
            parts = ("apiGroups", "resources", "resourceNames", "verbs")
            group, resources, names, verbs = (", ".join(rule.get(part, [])) for part in parts)
            group = group or "core"
            if (
                role["metadata"]["name"] == "quire-operator"
                and f"| {group} | {resources} | {verbs} |" in rights_table()
            ):
                continue
            cells = (role["metadata"]["name"], role["kind"], group, resources, names, verbs)
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def findings_table() -> str:
    return "\n".join(
        ["| code | about |", "| --- | --- |", *(f"| {code} | {title} |" for code, title in TITLES.items())]
    )


def test_the_rights_are_those_of_the_chart():
    assert rights_table() in SECURITY


def test_further_rights_are_those_of_the_chart():
    assert further_rights_table() in SECURITY


def test_every_finding_is_in_the_page():
    assert findings_table() in KUBERNETES


@pytest.mark.parametrize("page", PAGES)
def test_values_that_are_named_exist(page):
    text = PAGES[page]
    named = set(re.findall(r"--set(?:-string)? ([\w.]+)=", text))
    named |= set(re.findall(r"`((?:monitoring|gateway|operator|images)\.[\w.]+)`", text))
    for name in named:
        value = VALUES
        for part in name.split("."):
            assert isinstance(value, dict), name
            assert part in value, name
            value = value[part]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_lead_somewhere(page):
    text = PAGES[page]
    folder = ROOT / "docs" / ("runbooks" if page in RUNBOOKS else "")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (folder / target).exists(), target
    for path in re.findall(r"(?:charts/quire|images|manifests)/[\w./-]+\.\w+", text):
        assert (ROOT / path).exists(), path


def test_the_resources_of_the_page_are_valid():
    blocks = re.findall(r"```yaml\n(.*?)```", KUBERNETES, re.DOTALL)
    found = [document for block in blocks for document in yaml.safe_load_all(block)]
    deployments = [document for document in found if document["kind"] == "LLMDeployment"]
    assert len(deployments) == len(blocks) == 2
    for deployment in deployments:
        from_object(deployment)
    (of_class,) = (document for document in found if document["kind"] == "PriorityClass")
    assert deployments[1]["spec"]["podTemplate"]["spec"]["priorityClassName"] == of_class["metadata"]["name"]


def test_the_sample_of_the_quick_start_names_a_model_that_the_runtime_image_has():
    assert "kubectl apply -f manifests/samples/quire-tiny-kubernetes.yaml" in KUBERNETES
    sample = yaml.safe_load((ROOT / "manifests" / "samples" / "quire-tiny-kubernetes.yaml").read_text())
    within = from_object(sample).spec.model.source.removeprefix("file:///opt/quire/")
    assert (ROOT / within / "config.json").exists()
    assert f"cp -r {within.split('/')[0]} /opt/quire/models" in (ROOT / "images" / "runtime.Dockerfile").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_fields_of_the_spec_that_are_named_exist(page):
    crd = yaml.safe_load((ROOT / "crds" / "llmdeployments.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    for path in re.findall(r"`(spec\.[\w.]+)`", PAGES[page]):
        inner = schema
        for part in path.split("."):
            inner = inner.get("properties", inner) if part != "spec" else inner
            assert part in inner, path
            inner = inner[part]
