"""Reads from an API server, as the person of the kubeconfig."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from quire_api.connection import Connection
from quire_api.errors import UserError
from quire_api.v1alpha1 import API_VERSION, PLURAL

Manifest = dict[str, Any]
TIMEOUT_S = 20.0
LLMDEPLOYMENTS = f"/apis/{API_VERSION}/{PLURAL}"


class ClusterUnreachable(UserError):
    """Nothing answers where the kubeconfig points."""


class ClusterRefused(UserError):
    """The API server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NotFound(ClusterRefused):
    """There is no such object."""


class Api:
    """One API server. Every call raises ClusterUnreachable, ClusterRefused or NotFound."""

    def __init__(self, connection: Connection, timeout_s: float = TIMEOUT_S) -> None:
        self.connection = connection
        self._http = httpx.Client(
            base_url=connection.server, verify=connection.ssl_context(), timeout=timeout_s, trust_env=False
        )

    @classmethod
    def find(cls, kubeconfig: Path | None, context: str, timeout_s: float = TIMEOUT_S) -> "Api":
        """
        Raises:
            NoCluster: there is no way to an API server.
        """
        return cls(Connection.find(kubeconfig, context=context), timeout_s)

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, parameters: Mapping[str, str] | None = None) -> Manifest:
        """The object or list at a path."""
        return self._json(self._send("GET", path, parameters))

    def dated_get(self, path: str) -> tuple[Manifest, str]:
        """The object, and the API server's own time (an HTTP date)."""
        answer = self._send("GET", path)
        return self._json(answer), answer.headers.get("date", "")

    def items(self, path: str, labels: str = "") -> list[Manifest]:
        found: list[Manifest] = self.get(path, {"labelSelector": labels} if labels else None).get("items", [])
        return found

    def may(self, attributes: Manifest, account: str = "") -> bool:
        """Whether an account (empty: the person asking) may do what the attributes say."""
        kind = "SubjectAccessReview" if account else "SelfSubjectAccessReview"
        spec: Manifest = {"resourceAttributes": attributes} | ({"user": account} if account else {})
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        path = f"/apis/authorization.k8s.io/v1/{kind.lower()}s"
        return bool(self._json(self._send("POST", path, body=body))["status"].get("allowed"))

    def text(self, path: str, parameters: Mapping[str, str] | None = None) -> str:
        return self._send("GET", path, parameters).text

    def through_proxy(self, namespace: str, pod: str, port: int, path: str, headers: Mapping[str, str]) -> Manifest:
        """JSON from a port of a pod, by way of the API server."""
        place = f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}"
        return self._json(self._send("GET", place, headers=headers))

    @contextmanager
    def lines(self, path: str, parameters: Mapping[str, str]) -> Iterator[Iterator[str]]:
        """The lines of an answer as they come, for as long as it takes."""
        try:
            with self._http.stream("GET", path, params=parameters, headers=self._identity(), timeout=None) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._refusal(answer)
                yield answer.iter_lines()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _send(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        *,
        body: Manifest | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        try:
            answer = self._http.request(
                method, path, params=parameters, json=body, headers={**self._identity(), **(headers or {})}
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None
        if not answer.is_success:
            raise self._refusal(answer)
        return answer

    def _identity(self) -> dict[str, str]:
        bearer = self.connection.bearer()
        return {"authorization": f"Bearer {bearer}"} if bearer else {}

    def _unreachable(self, error: Exception) -> ClusterUnreachable:
        server, why = self.connection.server, str(error) or type(error).__name__
        return ClusterUnreachable(
            f"nothing answers at {server} ({why}). Is this the right cluster? Choose with --context or --kubeconfig."
        )

    def _refusal(self, answer: httpx.Response) -> ClusterRefused:
        try:
            message = str(answer.json()["message"])
        except (ValueError, KeyError, TypeError):
            message = answer.text.strip()[:300] or f"status {answer.status_code}"
        status = answer.status_code
        if status == 401:
            return ClusterRefused(
                status, f"{self.connection.server} does not know you: log in again, or choose with --context."
            )
        if status == 403:
            return ClusterRefused(status, f"not allowed: {message}. Ask for a role that permits it.")
        if status == 404 and f"/{PLURAL}" in answer.request.url.path and "could not find the requested" in message:
            return ClusterRefused(
                status,
                f"{self.connection.server} knows no LLMDeployments. Install Quire: helm install quire charts/quire",
            )
        return NotFound(status, message) if status == 404 else ClusterRefused(status, message)

    def _json(self, answer: httpx.Response) -> Manifest:
        try:
            found: Manifest = answer.json()
            return found
        except ValueError:
            raise ClusterRefused(answer.status_code, f"{answer.url} did not answer with JSON") from None


def deployments_path(namespace: str, name: str = "") -> str:
    """Of the LLMDeployments of a namespace, of all for an empty one, or of one of them."""
    place = f"namespaces/{namespace}/{PLURAL}" if namespace else PLURAL
    return f"/apis/{API_VERSION}/{place}" + (f"/{name}" if name else "")
