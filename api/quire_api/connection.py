"""Where the API server is and who we are to it: from inside a pod, or from a kubeconfig."""

import base64
import json
import os
import ssl
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire_api.errors import UserError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PLUGIN_TIMEOUT_S = 60.0


class NoCluster(UserError):
    """There is no way to an API server, or the one described cannot be used."""


@dataclass(frozen=True)
class Connection:
    """One API server and one identity. Certificates and keys are PEM text."""

    server: str
    namespace: str = "default"
    """Where this identity is at home."""
    ca: str = ""
    """Empty: the machine's own authorities."""
    certificate: str = ""
    key: str = ""
    token: str = ""
    token_file: Path | None = None
    """Read anew for each request: the kubelet rotates it."""
    is_verified: bool = True

    @classmethod
    def find(cls, kubeconfig: Path | None = None, account: Path = ACCOUNT, context: str = "") -> "Connection":
        """The kubeconfig given, else the pod's own account, else $KUBECONFIG or ~/.kube/config.

        A `context` is one of a kubeconfig, never the pod's account.

        Raises:
            NoCluster
        """
        if kubeconfig is not None:
            return cls.from_kubeconfig(kubeconfig, context)
        if not context and "KUBERNETES_SERVICE_HOST" in os.environ and (account / "token").exists():
            return cls.in_cluster(account)
        named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
        path = Path(named) if named else Path.home() / ".kube" / "config"
        if not path.exists():
            raise NoCluster(f"No cluster found: not in a pod, and {path} does not exist. Give --kubeconfig FILE.")
        return cls.from_kubeconfig(path, context)

    @classmethod
    def in_cluster(cls, account: Path = ACCOUNT) -> "Connection":
        """The service account of this pod."""
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        return cls(
            server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
            namespace=(account / "namespace").read_text().strip(),
            ca=(account / "ca.crt").read_text(),
            token_file=account / "token",
        )

    @classmethod
    def from_kubeconfig(cls, path: Path, context_name: str = "") -> "Connection":
        """A context of a kubeconfig, by default the current one, with certificates, a token or an `exec` plugin.

        A plugin is asked once; what it gives is not renewed.

        Raises:
            NoCluster: it cannot be read, lacks the context, or its plugin fails.
        """
        import yaml  # not part of the gateway's image, which never reads a kubeconfig

        try:
            config = yaml.safe_load(path.read_text())
            contexts = [entry["name"] for entry in config.get("contexts") or []]
            wanted = context_name or config.get("current-context") or ""
            if wanted not in contexts:
                known = f"has {', '.join(contexts)}" if contexts else "has none"
                said = f"no context {wanted}" if wanted else "no current context"
                raise NoCluster(f"{path} has {said}: it {known}. Name one with --context.")
            context = _named(config["contexts"], wanted, "context")
            cluster = _named(config["clusters"], context["cluster"], "cluster")
            user = _named(config["users"], context["user"], "user")
            if "auth-provider" in user:
                raise NoCluster(
                    f"{path} logs in by an auth-provider, which Kubernetes has removed. Use an exec plugin."
                )
            given = _from_plugin(user["exec"], path) if "exec" in user else {}
            return cls(
                server=cluster["server"].rstrip("/"),
                namespace=context.get("namespace", "default"),
                ca=_pem(cluster, "certificate-authority", path),
                certificate=given.get("clientCertificateData") or _pem(user, "client-certificate", path),
                key=given.get("clientKeyData") or _pem(user, "client-key", path),
                token=given.get("token") or user.get("token", ""),
                is_verified=not cluster.get("insecure-skip-tls-verify", False),
            )
        except OSError as error:
            raise NoCluster(f"{error.filename or path} cannot be read: {error.strerror}.") from None
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
            raise NoCluster(f"{path} is no complete kubeconfig: {error!r}.") from None

    def bearer(self) -> str:
        """The token to send; empty where certificates speak."""
        return self.token_file.read_text().strip() if self.token_file else self.token.strip()

    def ssl_context(self) -> ssl.SSLContext:
        """
        Raises:
            NoCluster: a certificate or key is malformed.
        """
        try:
            context = ssl.create_default_context(cadata=self.ca or None)
            if not self.is_verified:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.certificate:
                with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                    file.write(f"{self.certificate}\n{self.key}")
                    file.flush()
                    context.load_cert_chain(file.name)
        except ssl.SSLError as error:
            raise NoCluster(f"A certificate for {self.server} cannot be used: {error}.") from None
        return context


def _named(entries: list[dict[str, Any]], name: str, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry[kind] for entry in entries if entry["name"] == name)
    return found


def _pem(entry: dict[str, Any], field: str, kubeconfig: Path) -> str:
    if f"{field}-data" in entry:
        return base64.b64decode(entry[f"{field}-data"]).decode()
    return (kubeconfig.parent / entry[field]).read_text() if field in entry else ""


def _from_plugin(plugin: dict[str, Any], kubeconfig: Path) -> dict[str, str]:
    """The credentials that a client-go exec plugin prints (client.authentication.k8s.io, ExecCredential)."""
    command = [plugin["command"], *(plugin.get("args") or [])]
    if os.sep in command[0]:
        command[0] = str(kubeconfig.parent / command[0])
    about = {"apiVersion": plugin["apiVersion"], "kind": "ExecCredential", "spec": {"interactive": False}}
    environment = {entry["name"]: entry["value"] for entry in plugin.get("env") or []}
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environment, "KUBERNETES_EXEC_INFO": json.dumps(about)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PLUGIN_TIMEOUT_S,
            check=False,
        )
        if done.returncode == 0:
            status: dict[str, str] = json.loads(done.stdout)["status"]
            return status
        trouble = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except FileNotFoundError:
        trouble = plugin.get("installHint") or "it is not installed"
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        trouble = str(error) or type(error).__name__
    raise NoCluster(f"the plugin {plugin['command']} that {kubeconfig} logs in by failed: {trouble}")
