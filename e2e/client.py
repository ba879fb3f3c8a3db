"""kubectl, Helm and HTTP against a cluster: the one that e2e/cluster makes, or whatever a kubeconfig names."""

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from cluster import daemon
from cluster.layout import Layout

DEADLINE_S = 300.0
SYSTEM = "quire-system"


@dataclass
class Client:
    """Commands run behind the prefix `inside` and with `kubeconfig`."""

    layout: Layout
    is_own: bool
    """The cluster is ours: its node is this machine, and its daemons are ours to stop."""
    is_repository_mounted: bool
    """Engines run the repository's environment, mounted from the node; else what their image holds."""
    _forward: subprocess.Popen[str] | None = field(default=None, repr=False)
    _forwarded: str = ""

    @property
    def inside(self) -> list[str]:
        return self.layout.inside if self.is_own else []

    @property
    def environment(self) -> dict[str, str]:
        own = {"KUBECONFIG": str(self.layout.kubeconfig())} if self.is_own else {}
        return {**os.environ, "PATH": daemon.search_path(self.layout), **own}

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
        """Base address of the gateway's Service, from here."""
        if self.is_own:
            service = self.get("service", "quire-gateway", SYSTEM)
            return f"http://{service['spec']['clusterIP']}/v1"
        if self._forward is None or self._forward.poll() is not None:
            self._start_forward()
        return self._forwarded

    def close(self) -> None:
        if self._forward is not None:
            self._forward.kill()
            self._forward.wait()
            self._forward = None

    def _start_forward(self) -> None:
        with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
            command = ["kubectl", "port-forward", "--namespace", SYSTEM, "service/quire-gateway", ":80"]
            self._forward = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, text=True
            )
            found = eventually(
                lambda: re.search(r"127\.0\.0\.1:(\d+)", Path(log.name).read_text()), "kubectl port-forward"
            )
        self._forwarded = f"http://127.0.0.1:{found[1]}/v1"


def eventually(holds: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll until `holds` gives something true, and return that."""
    end = time.monotonic() + deadline_s
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < end, f"waited {deadline_s:.0f} s for {what}"
        time.sleep(0.3)
