"""The chart as plain manifests, for those who install without Helm.

    python charts/plain.py --write     writes manifests/quire.yaml
    python charts/plain.py --check     exits 1 if it is stale

Helm is taken from .quire/bin, where `make cluster-build` puts it, else from the PATH; without it --check says so only.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
CHART = REPOSITORY / "charts" / "quire"
TARGET = REPOSITORY / "manifests" / "quire.yaml"
NAMESPACE = "quire-system"
KEY = "quire-internal"
HEADER = f"""\
# Quire without Helm: the chart's defaults. Written by `make manifests`; change charts/quire instead.
#
#   kubectl apply --server-side -f manifests/quire.yaml
#   kubectl -n {NAMESPACE} create secret generic {KEY} --from-literal=key="$(openssl rand -hex 20)"
#
# The second line makes the key between gateways, engines and operator; their pods wait for it.
"""


def helm() -> str | None:
    """The program, where there is one."""
    built = REPOSITORY / ".quire" / "bin" / "helm"
    return str(built) if built.exists() else shutil.which("helm")


def manifests(program: str) -> str:
    """All objects of the chart but the Secret with the key, which has to be everybody's own."""
    command = [program, "template", "quire", str(CHART), "--namespace", NAMESPACE, "--kube-version", "1.34.0"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    objects = [_plain(found) for found in yaml.safe_load_all(text) if found and not _is_key(found)]
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    # What others refer to comes first.
    objects.sort(key=lambda found: found["kind"] != "CustomResourceDefinition")
    documents = [yaml.safe_dump(found, sort_keys=False, width=120) for found in (namespace, *objects)]
    return HEADER + "---\n" + "---\n".join(documents)


def _is_key(found: dict[str, Any]) -> bool:
    return found["kind"] == "Secret" and found["metadata"]["name"] == KEY


def _plain(found: Any) -> Any:
    """Without what only Helm reads."""
    if isinstance(found, dict):
        return {key: _plain(value) for key, value in found.items() if not str(key).startswith("helm.sh/")}
    return [_plain(value) for value in found] if isinstance(found, list) else found


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--write", action="store_true")
    task.add_argument("--check", action="store_true")
    options = parser.parse_args(argv)
    program = helm()
    if program is None:
        print(f"{TARGET.name} was not looked at: there is no Helm; `make cluster-build` builds it", file=sys.stderr)
        return 1 if options.write else 0
    text = manifests(program)
    if options.write:
        TARGET.write_text(text)
        return 0
    if TARGET.exists() and TARGET.read_text() == text:
        return 0
    print(f"{TARGET.name} is stale; run `make manifests` and commit the result", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
