"""The gateway's Service over TLS, and a certificate renewed while it serves."""

import bystander
import pytest
from client import SYSTEM
from cluster import pki
from scenario import GATEWAY, apply, serve

HOST = f"quire-gateway.{SYSTEM}.svc"


def issue(folder) -> None:
    """A new pair, of a new authority."""
    pki.issue(folder, "tls", pki.new_authority(folder, "ca"), None, HOST, pki.SERVER, names=[HOST])


@pytest.fixture
def secret(cluster, tmp_path):
    """Writes the newest pair into the Secret `gateway-tls`."""

    def write() -> None:
        data = {name: (tmp_path / name).read_text() for name in ("tls.crt", "tls.key")}
        metadata = {"name": "gateway-tls", "namespace": SYSTEM}
        apply(
            cluster,
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/tls",
                "metadata": metadata,
                "stringData": data,
            },
        )

    yield write
    cluster.kubectl("delete", "secret", "gateway-tls", "-n", SYSTEM)


def test_the_gateway_serves_https_and_takes_in_a_renewed_certificate(
    cluster, namespace, tiny, soon, install, secret, tmp_path
):
    model = serve(cluster, soon, tiny())
    issue(tmp_path)
    secret()
    address = cluster.get("service", "quire-gateway", SYSTEM)["spec"]["clusterIP"]

    def ask() -> str:
        """What a client gets that trusts the newest authority alone; empty where it does not trust the server."""
        body = {"model": model, "prompt": "Once", "max_tokens": 4}
        authority = (tmp_path / "ca.crt").read_text()
        return cluster.request(f"https://{HOST}/v1/completions", body, address=address, authority=authority)

    try:
        install(values=["gateway.tls.secretName=gateway-tls"])
        soon(lambda: "text_completion" in ask(), "an answer over TLS")
        soon(lambda: cluster.get("llmd", "tiny", namespace)["status"]["url"] == f"https://{HOST}/v1", "the address")
        issue(tmp_path)
        assert ask() == ""
        secret()
        soon(lambda: "text_completion" in ask(), "the renewed certificate")
        bystander.place(cluster, namespace)
        (gateway, *_) = cluster.pods(SYSTEM, GATEWAY)
        assert bystander.reaches(cluster, namespace, gateway, 8443)
        bystander.wait_until_kept_out(cluster, gateway, [namespace], 8000)
    finally:
        install()
