"""A way to the API server from outside of the cluster's network: what a kubeconfig alone gives, and nothing more."""

import os

import yaml

from cluster import node, quire_images
from cluster.errors import ClusterError
from cluster.layout import API_PORT, Layout


def share(layout: Layout, port: int) -> None:
    """Listen on loopback and carry each connection to the API server, in place of this process.

    The node is given Quire's images of now first: those of a chart that is newer would not take its flags.

    Raises:
        ClusterError: there is no cluster, socat is missing, or an image cannot be built.
    """
    if not layout.kubeconfig().exists():
        raise ClusterError("there is no cluster: `make cluster-up` first.")
    quire_images.build(layout, quire_images.SMALL)
    quire_images.pack_engine_base(layout)
    for name in (*quire_images.SMALL, "engine-base"):
        node.import_image(layout, quire_images.archive(layout, name))
    config = yaml.safe_load(layout.kubeconfig().read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    file = layout.kubeconfig("outside")
    file.write_text(yaml.safe_dump(config))
    print(f"export KUBECONFIG={file}", flush=True)
    inside = " ".join([*layout.inside, "socat", "STDIO", f"TCP\\:127.0.0.1\\:{API_PORT}"])
    try:
        os.execvp("socat", ["socat", f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr", f"EXEC:{inside}"])
    except FileNotFoundError:
        raise ClusterError("socat is missing: apt-get install socat") from None
