"""The gateway's Service over TLS, and a certificate renewed while it serves."""

import datetime
from pathlib import Path

import pytest
from client import SYSTEM
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from scenario import apply, serve

HOST = f"quire-gateway.{SYSTEM}.svc"


def write_pair(folder: Path) -> None:
    """A self-signed certificate for the Service's name in tls.crt, its key in tls.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "tls.crt").write_bytes(certificate.public_bytes(pem))
    (folder / "tls.key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))


@pytest.fixture
def secret(cluster, tmp_path):
    """Writes a new pair into the Secret `gateway-tls`."""

    def write() -> None:
        write_pair(tmp_path)
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
        """What a client gets that trusts the newest certificate alone; empty where it does not trust the server."""
        body = f'{{"model": "{model}", "prompt": "Once", "max_tokens": 4}}'
        return node.run(
            *("curl", "-s", "--max-time", "60", "--cacert", str(tmp_path / "tls.crt")),
            *("--connect-to", f"{HOST}:443:{address}:443", f"https://{HOST}/v1/completions"),
            *("-H", "content-type: application/json", "-d", body),
            check=False,
        )

    try:
        install(values=["gateway.tls.secretName=gateway-tls"])
        soon(lambda: "text_completion" in ask(), "an answer over TLS")
        soon(lambda: node.get("llmd", "tiny", namespace)["status"]["url"] == f"https://{HOST}/v1", "the address")
        secret()
        assert ask() == ""
        soon(lambda: "text_completion" in ask(), "the renewed certificate")
    finally:
        install()
