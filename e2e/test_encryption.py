"""The gateway's Service over TLS, and a certificate renewed while it serves."""

import bystander
import pytest
from client import SYSTEM
from cluster import pki
from scenario import GATEWAY, apply, serve

HOST = f"quire-gateway.{SYSTEM}.svc"


@pytest.fixture
def secret(cluster, tmp_path):
    """Writes a new pair, of a new authority, into the Secret `gateway-tls`."""

    def write() -> None:
        authority = pki.new_authority(tmp_path, "ca")
        pki.issue(tmp_path, "tls", authority, None, HOST, pki.SERVER, names=[HOST])
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
    node, namespace, tiny, soon, install, secret, tmp_path
):
    model = serve(node, soon, tiny())
    secret()
    address = node.get("service", "quire-gateway", SYSTEM)["spec"]["clusterIP"]

    def ask() -> str:
        """What a client gets that trusts the newest authority alone; empty where it does not trust the server."""
        body = f'{{"model": "{model}", "prompt": "Once", "max_tokens": 4}}'
        return node.run(
            *("curl", "-s", "--max-time", "60", "--cacert", str(tmp_path / "ca.crt")),
            *("--connect-to", f"{HOST}:443:{address}:443", f"https://{HOST}/v1/completions"),
            *("-H", "content-type: application/json", "-d", body),
            check=False,
        )

    try:
        install(values=["gateway.tls.secretName=gateway-tls"])
        soon(lambda: "text_completion" in ask(), "an answer over TLS")
        soon(lambda: node.get("llmd", "tiny", namespace)["status"]["url"] == f"https://{HOST}/v1", "the address")
        bystander.place(node, namespace)
        (gateway, *_) = node.pods(SYSTEM, GATEWAY)
        assert bystander.reaches(node, namespace, gateway, 8443)
        soon(lambda: not bystander.reaches(node, namespace, gateway, 8000), "plain HTTP to be closed to bystanders")
        secret()
        assert ask() == ""
        soon(lambda: "text_completion" in ask(), "the renewed certificate")
    finally:
        install()
