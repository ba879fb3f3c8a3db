"""`quire status`, `quire doctor` and `quire logs` against a real API server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
SYSTEM = "quire-system"
CHART = ["--namespace", SYSTEM, "--kube-version", "1.34.0", "--set", "crds.install=false", "--set", "internalKey=known"]


@pytest.fixture
def quire(cluster, tmp_path):
    """Runs the command inside the cluster's network, as the cluster's admin unless told otherwise."""

    def run(*arguments: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path), "COLUMNS": "300"}
        environment["KUBECONFIG"] = str(kubeconfig or cluster.layout.kubeconfig())
        command = [*cluster.layout.inside, sys.executable, "-m", "quire", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.fixture
def stranger(cluster, namespace, tmp_path) -> Path:
    """A kubeconfig of somebody with no rights at all."""
    config = yaml.safe_load(cluster.layout.kubeconfig().read_text())
    token = cluster.kubectl("create", "token", "default", "-n", namespace).strip()
    config["users"] = [{"name": "stranger", "user": {"token": token}}]
    config["contexts"] = [
        {
            "name": "here",
            "context": {"cluster": config["clusters"][0]["name"], "user": "stranger", "namespace": namespace},
        }
    ]
    config["current-context"] = "here"
    file = tmp_path / "stranger.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture
def installed(cluster, operator, soon):
    """The chart's objects; the fake node runs their pods, and the tests' own operator leads."""
    helm = [str(cluster.layout.binaries / "helm"), "template", "quire", str(REPOSITORY / "charts" / "quire"), *CHART]
    manifests = [
        document
        for document in yaml.safe_load_all(subprocess.run(helm, capture_output=True, text=True, check=True).stdout)
        if document
    ]
    bundle = {"apiVersion": "v1", "kind": "List", "items": manifests}
    cluster.kubectl("apply", "-f", "-", given=bundle)

    def available() -> bool:
        names = ("quire-operator", "quire-gateway")
        return all(cluster.get("deployment", n, SYSTEM).get("status", {}).get("availableReplicas") for n in names)

    soon(available, "operator and gateway")
    yield
    cluster.kubectl("delete", "-f", "-", "--wait=false", given=bundle)


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, list[dict]]:
    by_code: dict[str, list[dict]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        by_code.setdefault(finding["code"], []).append(finding)
    return by_code


def test_status_shows_what_kubectl_shows_and_the_conditions(cluster, operator, namespace, tiny, quire, soon):
    wish = tiny()
    wish["spec"]["access"] = {"apiKeysSecretRef": {"name": "absent"}}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=wish)
    soon(lambda: cluster.ready("tiny", namespace)[1] == "SecretNotFound", "the reason")
    done = quire("status", "-n", namespace)
    assert done.returncode == 1, done.stderr
    header, line = done.stdout.splitlines()[:2]
    wanted = cluster.kubectl("get", "llmd", "-n", namespace).splitlines()[0].split()
    assert header.split() == wanted
    assert line.split()[:3] == ["tiny", "file:///models/tiny", "False"]
    assert "the Secret absent does not exist" in done.stdout
    everywhere = quire("status", "-A")
    assert everywhere.stdout.split()[0] == "NAMESPACE"
    assert namespace in everywhere.stdout
    one = quire("status", "tiny", "-n", namespace, "-o", "json")
    assert json.loads(one.stdout)["metadata"]["name"] == "tiny"


def test_status_of_a_ready_deployment_is_0_and_shows_conditions_when_asked(
    cluster, operator, namespace, tiny, quire, soon
):
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
    pods = soon(lambda: cluster.objects("pods", namespace), "a pod")
    cluster.route(namespace, "tiny", pods[0]["metadata"]["name"])
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
    quiet = quire("status", "-n", namespace)
    assert (quiet.returncode, "Routable" in quiet.stdout) == (0, False)
    told = quire("status", "-n", namespace, "-v")
    assert (told.returncode, "Routable" in told.stdout) == (0, True)


def test_doctor_on_an_installation_finds_nothing_but_what_a_fake_node_cannot_have(
    cluster, installed, namespace, tiny, quire, soon
):
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
    pods = soon(lambda: cluster.objects("pods", namespace), "a pod")
    cluster.route(namespace, "tiny", pods[0]["metadata"]["name"])
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
    soon(lambda: quire("doctor", "-n", namespace, "-o", "json").returncode == 0, "no error")
    found = findings(quire("doctor", "-n", namespace, "-o", "json"))
    levels = {code: {finding["level"] for finding in entries} for code, entries in found.items()}
    assert levels.pop("QD010") == {"skipped"}
    assert levels.pop("QD011") == {"warning"}
    assert all(level == {"ok"} for level in levels.values()), found
    assert "leader leads" in found["QD004"][0]["message"]
    strict = quire("doctor", "-n", namespace, "--strict")
    assert strict.returncode == 1
    assert "QD011 warning" in strict.stdout


def test_doctor_names_a_missing_right_a_missing_secret_and_an_older_crd(
    cluster, installed, namespace, tiny, quire, soon
):
    wish = tiny()
    wish["spec"]["access"] = {"apiKeysSecretRef": {"name": "absent"}}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=wish)
    binding = cluster.get("clusterrolebinding", "quire-operator", "")
    cluster.kubectl("delete", "clusterrolebinding", "quire-operator")
    done = quire("doctor", "-n", namespace, "-o", "json")
    assert done.returncode == 1
    found = findings(done)
    assert "patch pods" in json.dumps(found["QD006"]) or "get llmdeployments.quire.dev" in json.dumps(found["QD006"])
    assert [f["subject"] for f in found["QD008"] if f["level"] == "error"] == [f"{namespace}/absent"]
    del binding["metadata"]["resourceVersion"], binding["metadata"]["uid"]
    cluster.kubectl("apply", "-f", "-", given=binding)


def test_doctor_without_an_installation_says_how_to_install(quire, operator):
    done = quire("doctor", "--system-namespace", "default")
    assert done.returncode == 1
    assert "QD003 error" in done.stdout
    assert "helm upgrade --install quire" in done.stdout


def test_somebody_without_rights_is_told_so(quire, namespace, stranger):
    done = quire("status", kubeconfig=stranger)
    assert done.returncode == 2
    assert "not allowed" in done.stderr
    assert "llmdeployments" in done.stderr
    examined = quire("doctor", "-o", "json", kubeconfig=stranger)
    levels = {finding["level"] for entries in findings(examined).values() for finding in entries}
    assert "skipped" in levels
    assert "Traceback" not in examined.stderr


def test_wrong_contexts_and_servers_get_a_sentence(cluster, quire, tmp_path):
    done = quire("status", "--context", "nowhere")
    assert (done.returncode, "no context nowhere" in done.stderr) == (2, True)
    config = yaml.safe_load(cluster.layout.kubeconfig().read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    dead = tmp_path / "dead.yaml"
    dead.write_text(yaml.safe_dump(config))
    for command in (["status", "-A"], ["doctor"], ["logs", "tiny"]):
        done = quire(*command, kubeconfig=dead)
        assert done.returncode == 2, done.stdout
        assert "nothing answers at https://127.0.0.1:1" in done.stderr


def test_logs_name_what_there_is(cluster, operator, namespace, tiny, quire, soon):
    done = quire("logs", "absent", "-n", namespace)
    assert (done.returncode, "there is none" in done.stderr) == (2, True)
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
    soon(lambda: cluster.objects("pods", namespace), "a pod")
    other = quire("logs", "absent", "-n", namespace)
    assert "there are: tiny" in other.stderr
    agent = quire("logs", "tiny", "-n", namespace, "--container", "agent")
    assert (agent.returncode, "has no container agent" in agent.stderr) == (2, True)
    replica = quire("logs", "tiny", "-n", namespace, "--replica", "x")
    assert "has no replica x" in replica.stderr


def test_names_are_completed_from_the_cluster(cluster, operator, namespace, tiny, quire):
    for name in ("tiny", "tall", "wide"):
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny(name))
    program = (
        "import types; from quire.cluster import names; names.TIMEOUT_S = 60; "
        f"print(names.complete_deployment(types.SimpleNamespace(params={{'namespace': '{namespace}'}}), 't'))"
    )
    environment = {**os.environ, "KUBECONFIG": str(cluster.layout.kubeconfig())}
    command = [*cluster.layout.inside, sys.executable, "-c", program]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    assert shown.strip() == "['tall', 'tiny']"


def test_a_plugin_of_the_kubeconfig_logs_in(cluster, quire, tmp_path):
    config = yaml.safe_load(cluster.layout.kubeconfig().read_text())
    user = config["users"][0]["user"]
    texts = {}
    for field, name in (("client-certificate", "clientCertificateData"), ("client-key", "clientKeyData")):
        shown = cluster.kubectl(
            "config", "view", "--raw", "--flatten", "-o", f"jsonpath={{.users[0].user.{field}-data}}"
        )
        texts[name] = shown
    script = tmp_path / "plugin.py"
    script.write_text(
        "import base64, json\n"
        f"texts = {texts!r}\n"
        "status = {name: base64.b64decode(text).decode() for name, text in texts.items()}\n"
        "print(json.dumps({'kind': 'ExecCredential', 'status': status}))\n"
    )
    user.clear()
    user["exec"] = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": sys.executable,
        "args": [str(script)],
    }
    file = tmp_path / "plugin.yaml"
    authority = cluster.kubectl(
        "config", "view", "--raw", "--flatten", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}"
    )
    config["clusters"][0]["cluster"].pop("certificate-authority", None)
    config["clusters"][0]["cluster"]["certificate-authority-data"] = authority
    file.write_text(yaml.safe_dump(config))
    done = quire("status", "-A", kubeconfig=file)
    assert done.returncode in (0, 1), done.stderr
    script.write_text("raise SystemExit('no login today')")
    done = quire("status", "-A", kubeconfig=file)
    assert (done.returncode, "no login today" in done.stderr) == (2, True)
