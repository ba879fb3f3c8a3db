"""etcd, API server, controller-manager and scheduler: enough for every test that needs no running pod."""

from cluster import daemon
from cluster.layout import API_PORT, NODE_IP, POD_CIDR, SERVICE_CIDR, Layout

NAMES = ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")
READY_DEADLINE_S = 120.0
GO = {"GOGC": "400"}
"""Memory for CPU: collecting garbage took an eighth of the API server's time on a machine of two cores."""


def start(layout: Layout) -> None:
    """Start all four and wait until the API server says it is ready.

    Raises:
        ClusterError: a component ended or the API server was not ready in time.
    """
    pki = layout.pki
    daemon.start(
        layout,
        "etcd",
        [
            "etcd",
            f"--data-dir={layout.state / 'etcd'}",
            "--name=e2e",
            "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=e2e=http://127.0.0.1:2380",
            "--log-level=warn",
        ],
        GO,
    )
    start_api_server(layout)
    daemon.start(
        layout,
        "kube-controller-manager",
        [
            "kube-controller-manager",
            *_client(layout, "controller-manager"),
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={pki / 'sa.key'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            "--allocate-node-cidrs=true",
            f"--cluster-cidr={POD_CIDR}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--horizontal-pod-autoscaler-sync-period=5s",
            # A claim that finds its volume a moment late waits this long (15 s by default), and its pod as long.
            "--pvclaimbinder-sync-period=1s",
            # While the API server is stopped no kubelet can tell that its node lives. With the 50 s of the default the
            # node, and with it every endpoint, is not ready when this controller comes before the kubelet afterwards.
            "--node-monitor-grace-period=3m",
        ],
        GO,
    )
    daemon.start(layout, "kube-scheduler", ["kube-scheduler", *_client(layout, "scheduler")])


def start_api_server(layout: Layout) -> None:
    """Start the API server alone and wait for it: tests stop and start it to play an outage.

    Raises:
        ClusterError: it ended or was not ready in time.
    """
    pki = layout.pki
    daemon.start(
        layout,
        "kube-apiserver",
        [
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0",
            f"--secure-port={API_PORT}",
            f"--advertise-address={NODE_IP}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={pki / 'front-proxy-client.crt'}",
            f"--proxy-client-key-file={pki / 'front-proxy-client.key'}",
            "--enable-aggregator-routing=true",
            "--profiling=false",
        ],
        GO,
    )
    daemon.wait_for("the API server", lambda: _is_ready(layout), READY_DEADLINE_S, layout, "kube-apiserver")


def _client(layout: Layout, user: str) -> list[str]:
    config = layout.kubeconfig(user)
    return [
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--profiling=false",
        "--kube-api-qps=300",
        "--kube-api-burst=600",
    ]


def _is_ready(layout: Layout) -> bool:
    return daemon.run(layout, ["kubectl", "get", "--raw", "/readyz"], timeout_s=30.0).returncode == 0
