"""Certificates and kubeconfigs, made anew for every cluster."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.layout import API_PORT, API_SERVICE_IP, NODE, NODE_IP, Layout

CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
LIFETIME = datetime.timedelta(days=365)
API_NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
)
USERS = {
    "admin": ("system:masters", "admin"),
    "controller-manager": (None, "system:kube-controller-manager"),
    "scheduler": (None, "system:kube-scheduler"),
    "proxy": (None, "system:kube-proxy"),
    "kubelet": ("system:nodes", f"system:node:{NODE}"),
}


@dataclass(frozen=True, slots=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def write_pki(layout: Layout) -> None:
    """Authorities, serving and client certificates, the service-account key pair, one kubeconfig per user."""
    layout.pki.mkdir(parents=True, exist_ok=True)
    ca = new_authority(layout.pki, "ca")
    front_proxy = new_authority(layout.pki, "front-proxy-ca")
    hosts = ["127.0.0.1", NODE_IP, API_SERVICE_IP]
    issue(layout.pki, "apiserver", ca, None, "kube-apiserver", SERVER, names=API_NAMES, addresses=hosts)
    issue(layout.pki, "kubelet-server", ca, None, NODE, SERVER, names=[NODE], addresses=hosts[:2])
    issue(layout.pki, "apiserver-kubelet-client", ca, "system:masters", "apiserver-kubelet-client", CLIENT)
    issue(layout.pki, "front-proxy-client", front_proxy, None, "front-proxy-client", CLIENT)
    account_key = _write_key(layout.pki / "sa.key")
    (layout.pki / "sa.pub").write_bytes(
        account_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    for user, (group, name) in USERS.items():
        issue(layout.pki, user, ca, group, name, CLIENT)
        _write_kubeconfig(layout, user)


def new_authority(folder: Path, name: str) -> Authority:
    """An authority that trusts itself; its pair is `name`.crt and `name`.key in `folder`."""
    key = _write_key(folder / f"{name}.key")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _builder(subject, subject, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_certificate(folder / f"{name}.crt", certificate)
    return Authority(certificate, key)


def issue(
    folder: Path,
    file: str,
    authority: Authority,
    group: str | None,
    name: str,
    purpose: x509.ObjectIdentifier,
    names: tuple[str, ...] | list[str] = (),
    addresses: list[str] | None = None,
) -> None:
    """Write `file`.crt and `file`.key: a certificate of the authority for the user `name` of `group`, or a server."""
    key = _write_key(folder / f"{file}.key")
    organisation = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group)] if group else []
    subject = x509.Name([*organisation, x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, authority.certificate.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    if names or addresses:
        alternatives: list[x509.GeneralName] = [x509.DNSName(dns) for dns in names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses or []]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    _write_certificate(folder / f"{file}.crt", builder.sign(authority.key, hashes.SHA256()))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
    )


def _write_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return key


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _write_kubeconfig(layout: Layout, user: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": layout.name,
                "cluster": {
                    "server": f"https://127.0.0.1:{API_PORT}",
                    "certificate-authority": str(layout.pki / "ca.crt"),
                },
            }
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate": str(layout.pki / f"{user}.crt"),
                    "client-key": str(layout.pki / f"{user}.key"),
                },
            }
        ],
        "contexts": [{"name": layout.name, "context": {"cluster": layout.name, "user": user}}],
        "current-context": layout.name,
    }
    path = layout.kubeconfig(user)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
