"""kubectl, Helm and HTTP against a cluster: the one that e2e/cluster makes, or whatever a kubeconfig names."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from cluster import daemon
from cluster.layout import NODE_IP, Layout

DEADLINE_S = 300.0
SYSTEM = "quire-system"
VISITORS = "quire-e2e"
"""The namespace of the pod that scripts run in where the cluster is not ours."""
VISITOR = "bystander"
PLACE = "/place"
"""A folder that bystanders may write."""
UNPACK = "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall(sys.argv[1])"


@dataclass
class Client:
    """Commands of this machine, and scripts that run inside the cluster's network.

    Where the cluster is ours, commands run in its network namespace, and scripts beside them.
    """

    layout: Layout
    is_own: bool
    """The cluster is ours: its node is this machine, and its daemons are ours to stop."""
    is_repository_mounted: bool
    """Engines run the repository's environment, mounted from the node; else what their image holds."""
    is_visiting: bool
    """Scripts run in the pod VISITOR, for a kubeconfig reaches nothing but the API server."""

    @property
    def inside(self) -> list[str]:
        return self.layout.inside if self.is_own else []

    @property
    def environment(self) -> dict[str, str]:
        own = {"KUBECONFIG": str(self.layout.kubeconfig())} if self.is_own else {}
        return {**os.environ, "PATH": daemon.search_path(self.layout), **own}

    def script(self, name: str, *arguments: str) -> list[str]:
        """The command that, behind `inside`, runs a script of this folder inside the cluster's network."""
        file = Path(__file__).with_name(name)
        if not self.is_visiting:
            return [sys.executable, str(file), *arguments]
        there = ["kubectl", "exec", "--stdin", VISITOR, f"--namespace={VISITORS}", "--"]
        return [*there, "python", "-c", file.read_text(), *arguments]

    @property
    def address(self) -> str:
        """Where pods reach what a script listens at."""
        return str(self.get("pod", VISITOR, VISITORS)["status"]["podIP"]) if self.is_visiting else NODE_IP

    def request(
        self,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        *,
        address: str = "",
        authority: str = "",
    ) -> str:
        """The body of the answer to one request from inside, whatever its status; empty where none came.

        What `body`, `address` and `authority` are to request.py; a body goes as JSON.
        """
        asked = {"url": url, "address": address, "authority": authority, "timeout_s": 100, "body": "", "headers": {}}
        if body is not None:
            asked |= {"body": json.dumps(body), "headers": {"content-type": "application/json", **headers}}
        else:
            asked |= {"headers": dict(headers)}
        return self.run(*self.script("request.py"), given=json.dumps(asked), check=False)

    def send(self, folder: Path, namespace: str, pod: str, place: str) -> None:
        """Copy the files of a folder into a pod that has Python."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(folder, arcname=".")
        there = ["kubectl", "exec", "--stdin", pod, f"--namespace={namespace}", "--", "python", "-c", UNPACK, place]
        done = subprocess.run(
            [*self.inside, *there], env=self.environment, input=packed.getvalue(), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()

    def run(self, *command: str, given: str | None = None, check: bool = True) -> str:
        done = subprocess.run(
            [*self.inside, *command],
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S * 2,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def kubectl(self, *arguments: str, given: Any = None, check: bool = True) -> str:
        text = None
        if given is not None:
            text = yaml.safe_dump_all(given if isinstance(given, list) else [given])
        return self.run("kubectl", *arguments, given=text, check=check)

    def helm(self, *arguments: str) -> str:
        return self.run("helm", *arguments)

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """The object; empty if there is none."""
        text = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text else {}

    def objects(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        return json.loads(self.kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "json"))["items"]

    def pods(self, namespace: str, selector: str = "quire.dev/deployment") -> list[dict[str, Any]]:
        """Pods that are not on their way out."""
        return [pod for pod in self.objects("pods", namespace, selector) if "deletionTimestamp" not in pod["metadata"]]

    def ready(self, name: str, namespace: str) -> tuple[str, str, str]:
        """Status, reason and message of the Ready condition."""
        for entry in self.get("llmd", name, namespace).get("status", {}).get("conditions", []):
            if entry["type"] == "Ready":
                return entry["status"], entry["reason"], entry["message"]
        return "", "", ""

    @property
    def gateway(self) -> str:
        """Base address of the gateway's Service, from inside."""
        service = self.get("service", "quire-gateway", SYSTEM)
        return f"http://{service['spec']['clusterIP']}/v1"


def eventually(holds: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll until `holds` gives something true, and return that."""
    end = time.monotonic() + deadline_s
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < end, f"waited {deadline_s:.0f} s for {what}"
        time.sleep(0.3)
