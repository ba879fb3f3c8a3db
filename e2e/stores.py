"""Where models and images come from: a hub inside the cluster's network, and a registry of images on our own node."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from client import PLACE, VISITOR, VISITORS, Client, eventually

HUB_PORT = 8391
REGISTRY_PORT = 5391
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class Hub:
    """hub.py inside the cluster's network; it serves a folder as org/model until `stop`."""

    def __init__(self, cluster: Client, log: Path, folder: Path, *flags: str, port: int = HUB_PORT) -> None:
        place = str(folder)
        if cluster.is_visiting:
            place = f"{PLACE}/hub-{port}"
            cluster.send(folder, VISITORS, VISITOR, place)
        command = [*cluster.inside, *cluster.script("hub.py", place, str(port), *flags)]
        with log.open("w") as lines:
            self._process = subprocess.Popen(
                command, env=cluster.environment, stdin=subprocess.PIPE, stdout=lines, text=True
            )
        self._log = log
        self.url = f"http://{cluster.address}:{port}"
        eventually(lambda: cluster.request(f"{self.url}/api/models/org/model"), "the hub")

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def downloads(self) -> int:
        """How often the weights were asked for."""
        lines = self._log.read_text().splitlines()
        return sum(line.startswith("GET ") and line.endswith(".safetensors") for line in lines)

    def model(self, **more: object) -> dict[str, object]:
        return {"source": "hf://org/model", **more}

    def pod_template(self, template: dict[str, Any], volumes: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """With the agent told where this hub is, and with `volumes` laid over those there are."""
        environment = [{"name": "HF_ENDPOINT", "value": self.url}, {"name": "HF_HUB_DISABLE_XET", "value": "1"}]
        spec = {**template.get("spec", {}), "initContainers": [{"name": "agent", "env": environment}]}
        return {"spec": {**spec, "volumes": [*spec.get("volumes", []), *volumes]}}


class Registry:
    """Debian's docker-registry on the node, whose containerd speaks plain HTTP to loopback only."""

    def __init__(self, cluster: Client, folder: Path, port: int = REGISTRY_PORT) -> None:
        assert shutil.which("docker-registry"), "docker-registry is missing: apt-get install docker-registry"
        folder.mkdir(parents=True, exist_ok=True)
        self.address = f"127.0.0.1:{port}"
        self._cluster = cluster
        config = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "images")}},
            "http": {"addr": self.address},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        command = [*cluster.inside, "docker-registry", "serve", str(folder / "config.yaml")]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: cluster.request(f"http://{self.address}/v2/"), "the registry")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def push(self, image: str, name: str) -> str:
        """Put an image of the node into the registry; its name there, pinned by its digest."""
        there = f"{self.address}/{name}"
        socket = self._cluster.layout.containerd_socket
        for arguments in (["tag", "--force", image, there], ["push", "--plain-http", there], ["rm", there]):
            self._cluster.run("ctr", f"--address={socket}", "--namespace=k8s.io", "images", *arguments)
        repository, _, tag = name.partition(":")
        manifest = f"http://{self.address}/v2/{repository}/manifests/{tag}"
        headers = self._cluster.run("curl", "-sfI", "-H", f"Accept: {', '.join(MANIFESTS)}", manifest)
        found = re.search(r"^docker-content-digest: (\S+)", headers, re.IGNORECASE | re.MULTILINE)
        assert found, headers
        return f"{self.address}/{repository}@{found[1]}"
