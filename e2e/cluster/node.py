"""containerd, kubelet, kube-proxy and what enforces network policies: one real node."""

import json
import subprocess
from pathlib import Path

import yaml

from cluster import daemon, machine
from cluster.errors import ClusterError
from cluster.layout import DNS_IP, IMAGE_PREFIX, NODE, NODE_IP, NODE_POD_CIDR, POD_CIDR, SERVICE_CIDR, Layout

POLICIES = "network-policies"
CNI_PLUGINS = "/usr/lib/cni"
READY_DEADLINE_S = 120.0

CONTAINERD = """\
version = 2
root = "{root}"
state = "{run}/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{prefix}/pause:1"
  stream_server_address = "127.0.0.1"
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE nothing may lower oom_score_adj, and every sandbox would die with a misleading error.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_plugins}"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def start(layout: Layout) -> None:
    """Start the node, import every image of `layout.images`, and wait until the node is Ready.

    Raises:
        ClusterError: a component ended, an image could not be imported, or the node was not Ready in time.
    """
    settings = layout.state / "etc"
    (settings / "cni").mkdir(parents=True, exist_ok=True)
    layout.run.mkdir(parents=True, exist_ok=True)
    machine.remember_sysctls(layout)
    machine.remember_folders(layout)
    machine.create_cgroups(layout)
    # Pods never see the machine's resolver.
    (settings / "resolv.conf").touch()
    (settings / "containerd.toml").write_text(
        CONTAINERD.format(
            root=layout.state / "containerd",
            run=layout.run,
            socket=layout.containerd_socket,
            prefix=IMAGE_PREFIX,
            cni_plugins=CNI_PLUGINS,
            cni=settings / "cni",
        )
    )
    (settings / "cni" / "10-e2e.conflist").write_text(json.dumps(_cni(layout)))
    (settings / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet(layout)))
    (settings / "kube-proxy.yaml").write_text(yaml.safe_dump(_kube_proxy(layout)))
    daemon.start(layout, "containerd", ["containerd", f"--config={settings / 'containerd.toml'}"])
    daemon.wait_for("containerd", lambda: _answers(layout), 30.0, layout, "containerd")
    for archive in sorted(layout.images.glob("*.tar")):
        import_image(layout, archive)
    daemon.start(
        layout,
        "kubelet",
        [
            "kubelet",
            f"--config={settings / 'kubelet.yaml'}",
            f"--kubeconfig={layout.kubeconfig('kubelet')}",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_IP}",
            f"--root-dir={layout.state / 'kubelet'}",
            f"--cert-dir={layout.pki}",
        ],
    )
    daemon.start(layout, "kube-proxy", ["kube-proxy", f"--config={settings / 'kube-proxy.yaml'}"])
    daemon.wait_for("the node to be Ready", lambda: _node_is_ready(layout), READY_DEADLINE_S, layout, "kubelet")
    # It asks for the node's address once, when it starts.
    daemon.start(
        layout,
        POLICIES,
        [
            POLICIES,
            f"--kubeconfig={layout.kubeconfig()}",
            f"--hostname-override={NODE}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
        ],
    )


def import_image(layout: Layout, archive: Path) -> None:
    """
    Raises:
        ClusterError: it is no image.
    """
    done = ctr(layout, "images", "import", str(archive), timeout_s=900.0)
    if done.returncode:
        raise ClusterError(f"{archive.name} is no image that containerd takes: {done.stderr.strip()}")


def ctr(layout: Layout, *arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """containerd's own client, in the namespace that the kubelet uses."""
    command = ["ctr", f"--address={layout.containerd_socket}", "--namespace=k8s.io", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def _answers(layout: Layout) -> bool:
    # Without its socket `ctr` blocks for ten seconds.
    return layout.containerd_socket.exists() and ctr(layout, "version").returncode == 0


def _node_is_ready(layout: Layout) -> bool:
    path = '{.status.conditions[?(@.type=="Ready")].status}'
    return daemon.run(layout, ["kubectl", "get", "node", NODE, "-o", f"jsonpath={path}"]).stdout == "True"


def _cni(layout: Layout) -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": NODE_POD_CIDR}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(layout.state / "cni-ipam"),
        },
    }
    return {
        "cniVersion": "1.0.0",
        "name": "e2e",
        "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}],
    }


def _kubelet(layout: Layout) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_IP,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(layout.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        # Pod cgroups of this cluster alone live below this root, so that tear-down touches no other's.
        "cgroupRoot": f"/{layout.name}",
        "cgroupsPerQOS": True,
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [DNS_IP],
        "clusterDomain": "cluster.local",
        "resolvConf": str(layout.state / "etc" / "resolv.conf"),
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "tlsCertFile": str(layout.pki / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(layout.pki / "kubelet-server.key"),
        "podLogsDir": str(layout.state / "pod-logs"),
        "volumePluginDir": str(layout.state / "volume-plugins"),
        "maxPods": 110,
        "serializeImagePulls": False,
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1Gi",
            "imagefs.available": "1Gi",
            "nodefs.inodesFree": "1%",
        },
    }


def _kube_proxy(layout: Layout) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(layout.kubeconfig("proxy"))},
        "mode": "iptables",
        "hostnameOverride": NODE,
        "clusterCIDR": POD_CIDR,
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "0s"},
    }
