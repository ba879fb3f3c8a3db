"""Who we are to an OCI registry: `.dockerconfigjson`, and the tokens that it buys."""

import base64
import binascii
import ipaddress
import json
import os
import re
import threading
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import httpx

from quire_runtime.agent.errors import WeightsUnauthorized

PARAMETER = re.compile(r'(\w+)="([^"]*)"')
DOCKER_HUB = "docker.io"
DOCKER_HUB_HOST = "registry-1.docker.io"
DOCKER_HUB_KEY = "index.docker.io/v1"


@dataclass(frozen=True, slots=True)
class Credentials:
    username: str = ""
    password: str = ""
    identity_token: str = ""

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def read_credentials(registry: str, repository: str) -> Credentials | None:
    """From `config.json` in $DOCKER_CONFIG, by default ~/.docker: the longest entry that the repository begins with.

    Raises:
        WeightsUnauthorized: the file cannot be read or understood.
    """
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        entries = json.loads(path.read_text()).get("auths") or {}
        known = {_bare(name): entry for name, entry in entries.items()}
        host = DOCKER_HUB_KEY if registry == DOCKER_HUB else registry
        matching = [
            name for name in known if name in (host, registry) or f"{registry}/{repository}/".startswith(f"{name}/")
        ]
        return _credentials(known[max(matching, key=len)]) if matching else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsUnauthorized(
            f"{path} is not a Docker configuration ({error}). Make the Secret with: kubectl create secret "
            "docker-registry NAME --docker-server=… --docker-username=… --docker-password=…"
        ) from error


def _bare(name: str) -> str:
    return name.removeprefix("https://").removeprefix("http://").rstrip("/")


def _credentials(entry: dict[str, str]) -> Credentials | None:
    username, password = entry.get("username", ""), entry.get("password", "")
    if auth := entry.get("auth"):
        try:
            username, _, password = base64.b64decode(auth).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ValueError(f"auth is not base64: {error}") from None
    token = entry.get("identitytoken", "")
    return Credentials(username, password, token) if token or username else None


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine by its own word, the only place where plain HTTP is spoken to."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class RegistryAuth(httpx.Auth):
    """Answers a registry's challenge: Basic with the credentials, Bearer with a token that they (or nobody) can get.

    The answer is kept for later requests and renewed when it is refused. Nothing is sent to another host than the
    registry's and, by https, its token service.
    """

    def __init__(self, host: str, repository: str, credentials: Credentials | None) -> None:
        self._host = host
        self._repository = repository
        self._credentials = credentials
        self._lock = threading.Lock()
        self._header = ""

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if request.url.netloc.decode() != self._host:
            yield request
            return
        sent = self._header
        if sent:
            request.headers["Authorization"] = sent
        response = yield request
        if response.status_code != 401:
            return
        response.read()
        with self._lock:
            if self._header == sent:
                yield from self._answer(response.headers.get("WWW-Authenticate", ""))
        if self._header and self._header != sent:
            request.headers["Authorization"] = self._header
            yield request

    def _answer(self, challenge: str) -> Generator[httpx.Request, httpx.Response, None]:
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and self._credentials:
            self._header = self._credentials.basic
        if scheme.lower() != "bearer":
            return
        parameters = dict(PARAMETER.findall(rest))
        realm = httpx.URL(parameters.get("realm", ""))
        if realm.scheme != "https" and not is_loopback(realm.host):
            raise WeightsUnauthorized(f"{self._host} names a token service without https ({realm}), which is not used.")
        response = yield self._token_request(realm, parameters)
        response.read()
        if response.is_success:
            answer = response.json()
            self._header = f"Bearer {answer.get('token') or answer.get('access_token')}"
        elif response.status_code >= 500 or response.status_code == 429:
            raise httpx.RemoteProtocolError(f"the token service {realm.host} answered {response.status_code}")

    def _token_request(self, realm: httpx.URL, parameters: dict[str, str]) -> httpx.Request:
        asked = {"scope": parameters.get("scope") or f"repository:{self._repository}:pull"}
        if service := parameters.get("service"):
            asked["service"] = service
        if self._credentials and self._credentials.identity_token:
            grant = {"grant_type": "refresh_token", "refresh_token": self._credentials.identity_token}
            return httpx.Request("POST", realm, data={**asked, **grant, "client_id": "quire"})
        headers = {"Authorization": self._credentials.basic} if self._credentials else {}
        return httpx.Request("GET", realm.copy_merge_params(asked), headers=headers)
