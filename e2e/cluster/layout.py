"""Names, addresses and folders of the cluster: everything that two of its parts must agree on."""

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SOURCES = Path(__file__).parent

NODE = "node1"
NODE_IP = "10.200.0.1"
POD_CIDR = "10.244.0.0/16"
NODE_POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"
DNS_IP = "10.96.0.10"
API_PORT = 6443
IMAGE_PREFIX = "e2e.local"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one cluster keeps its things. Two clusters differ in `name` and never meet: each has its own namespace."""

    name: str = "quire-e2e"
    home: Path = REPOSITORY / ".quire"

    @property
    def binaries(self) -> Path:
        return self.home / "bin"

    @property
    def images(self) -> Path:
        """docker-archives that `up` imports."""
        return self.home / "images"

    @property
    def state(self) -> Path:
        """Certificates, data, logs, process ids: removed by `down`."""
        return self.home / self.name

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def logs(self) -> Path:
        return self.state / "log"

    @property
    def run(self) -> Path:
        """Sockets; below /run because a socket's path has at most 107 bytes."""
        return Path("/run") / self.name

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def namespace(self) -> Path:
        return Path("/run/netns") / self.name

    def kubeconfig(self, user: str = "admin") -> Path:
        return self.state / "kubeconfig" / f"{user}.yaml"

    @property
    def inside(self) -> list[str]:
        """Prefix of a command that runs inside the cluster's network.

        Not `ip netns exec`: that mounts a fresh /sys, which hides the cgroups from the kubelet.
        """
        return ["nsenter", f"--net={self.namespace}"]
