"""The few calls to the API server that an operator makes: JSON over aiohttp, retried where that is safe.

The official client would cost most of a Python operator's memory; aiohttp is here because of kopf already.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import msgspec

from quire_api.connection import Connection
from quire_operator.merge import Manifest, place_of
from quire_operator.metrics import API_REQUESTS

FIELD_MANAGER = "quire-operator"
TRIES = 3
"""Few: whoever asks comes again by itself, and must not hold a worker while an object's webhook is broken."""
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
TIMEOUT_S = 30.0
CONNECTIONS = 16
PAGE = 500
"""Objects in one answer, so that a long list holds up nobody."""
_METADATA_ONLY = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=1,application/json"
_RETRIED = frozenset({429, 500, 502, 503, 504})

KINDS = {
    ("apps/v1", "Deployment"): "deployments",
    ("coordination.k8s.io/v1", "Lease"): "leases",
    ("networking.k8s.io/v1", "NetworkPolicy"): "networkpolicies",
    ("policy/v1", "PodDisruptionBudget"): "poddisruptionbudgets",
    ("quire.dev/v1alpha1", "LLMDeployment"): "llmdeployments",
    ("storage.k8s.io/v1", "StorageClass"): "storageclasses",
    ("v1", "Event"): "events",
    ("v1", "Node"): "nodes",
    ("v1", "PersistentVolumeClaim"): "persistentvolumeclaims",
    ("v1", "Pod"): "pods",
    ("v1", "Secret"): "secrets",
    ("v1", "Service"): "services",
    ("v1", "ServiceAccount"): "serviceaccounts",
}


class ApiError(Exception):
    """The API server refused; `reason` and `message` are its own."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class ApiUnavailable(Exception):
    """No answer, or none but errors of its own, after several tries."""


class NotLeading(Exception):
    """A write was asked for by an operator that does not hold the lease."""


class Kube:
    """`may_write` fences writes: it is asked before each one."""

    def __init__(self, connection: Connection, may_write: Callable[[], bool] = lambda: True) -> None:
        self.connection = connection
        self.may_write = may_write
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=connection.ssl_context(), limit=CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            # For each step of a call: a long list may take longer than that in all.
            timeout=aiohttp.ClientTimeout(total=None, connect=TIMEOUT_S, sock_read=TIMEOUT_S),
        )

    async def close(self) -> None:
        await self._http.close()

    async def get(self, api_version: str, kind: str, namespace: str | None, name: str) -> Manifest | None:
        """The object; None if there is none."""
        return await self._get(path_of(api_version, kind, namespace, name))

    async def version_of(self, api_version: str, kind: str, namespace: str | None, name: str) -> str:
        """The object's resource version, without its content; empty if there is none."""
        found = await self._get(path_of(api_version, kind, namespace, name), accept=_METADATA_ONLY.format(""))
        return str(found["metadata"]["resourceVersion"]) if found else ""

    async def _get(self, path: str, accept: str = "application/json") -> Manifest | None:
        try:
            return await self._call("GET", path, accept=accept)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self, api_version: str, kind: str, namespace: str | None, labels: str = "", limit: int | None = None
    ) -> list[Manifest]:
        """All objects with these labels, read from the API server's cache, or `limit` of them as they are now."""
        parameters = {"resourceVersion": "0"} if limit is None else {"limit": str(limit)}
        parameters |= {"labelSelector": labels} if labels else {}
        answer = await self._call("GET", path_of(api_version, kind, namespace), parameters)
        return list(answer.get("items", []))

    async def places(
        self, api_version: str, kind: str, namespace: str | None, labels: str = ""
    ) -> tuple[int, set[tuple[str, str]]]:
        """Namespace and name of all objects with these labels, and the resource version as of which they are all.

        Raises:
            ApiError: also 410, where the list is longer than the API server's patience.
        """
        path = path_of(api_version, kind, namespace)
        parameters = {"limit": str(PAGE)} | ({"labelSelector": labels} if labels else {})
        found: set[tuple[str, str]] = set()
        while True:
            answer = await self._call("GET", path, parameters, accept=_METADATA_ONLY.format("List"))
            found |= {place_of(item) for item in answer.get("items", [])}
            if not (token := answer["metadata"].get("continue")):
                return int(answer["metadata"]["resourceVersion"]), found
            parameters["continue"] = token

    async def apply(self, manifest: Manifest, *, force: bool, is_rehearsal: bool = False) -> Manifest:
        """Server-side apply. Without `force` a field that another manager set differently is an ApiError 409.

        is_rehearsal: everything is checked as if it were written (a server-side dry run).
        """
        metadata = manifest["metadata"]
        path = path_of(manifest["apiVersion"], manifest["kind"], metadata["namespace"], metadata["name"])
        parameters = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        parameters |= {"dryRun": "All"} if is_rehearsal else {}
        return await self._call("PATCH", path, parameters, manifest, "application/apply-patch+yaml")

    async def patch(
        self, api_version: str, kind: str, namespace: str, name: str, change: Manifest, subresource: str = ""
    ) -> Manifest:
        """Strategic merge patch, or JSON merge patch for our own kind."""
        path = path_of(api_version, kind, namespace, name) + (f"/{subresource}" if subresource else "")
        is_own = api_version.startswith("quire.dev/")
        content_type = "application/merge-patch+json" if is_own else "application/strategic-merge-patch+json"
        return await self._call("PATCH", path, {"fieldManager": FIELD_MANAGER}, change, content_type)

    async def create(self, manifest: Manifest) -> Manifest:
        path = path_of(manifest["apiVersion"], manifest["kind"], manifest["metadata"]["namespace"])
        return await self._call("POST", path, {"fieldManager": FIELD_MANAGER}, manifest, is_repeatable=False)

    async def replace(self, manifest: Manifest) -> Manifest:
        """Put the whole object; with a resourceVersion in it, an ApiError 409 if somebody was faster."""
        metadata = manifest["metadata"]
        path = path_of(manifest["apiVersion"], manifest["kind"], metadata["namespace"], metadata["name"])
        return await self._call("PUT", path, {"fieldManager": FIELD_MANAGER}, manifest, is_repeatable=False)

    async def delete(self, api_version: str, kind: str, namespace: str, name: str, uid: str = "") -> None:
        """Delete in the background; an object that is gone (or another than `uid`) is fine."""
        options: Manifest = {"propagationPolicy": "Background"} | ({"preconditions": {"uid": uid}} if uid else {})
        try:
            await self._call("DELETE", path_of(api_version, kind, namespace, name), None, options)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def _call(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
        *,
        accept: str = "application/json",
        is_repeatable: bool = True,
    ) -> Manifest:
        url = self.connection.server + path
        data = msgspec.json.encode(body) if body is not None else None
        delay = FIRST_DELAY_S
        trouble = ""
        for attempt in range(TRIES if is_repeatable else 1):
            if attempt:
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, LONGEST_DELAY_S)
            if method != "GET" and not self.may_write():
                raise NotLeading(f"{method} {path}")
            headers = {"content-type": content_type, "accept": accept}
            try:
                if bearer := self.connection.bearer():
                    headers["authorization"] = f"Bearer {bearer}"
                async with self._http.request(
                    method, url, params=parameters, data=data, headers=headers, allow_redirects=False
                ) as answer:
                    content = await answer.read()
            except (aiohttp.ClientError, OSError, ValueError) as error:
                API_REQUESTS.labels(method, "none").inc()
                trouble = f"{method} {path}: {str(error) or type(error).__name__}"
                continue
            API_REQUESTS.labels(method, str(answer.status)).inc()
            if 200 <= answer.status < 300:
                try:
                    return msgspec.json.decode(content, type=Manifest)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    trouble = f"{method} {path} was answered with no JSON: {error}"
                    continue
            refusal = _refusal(answer.status, content)
            if refusal.status not in _RETRIED:
                raise refusal
            trouble = f"{method} {path}: {refusal}"
            if (after := answer.headers.get("retry-after", "")).isdigit():
                delay = max(delay, min(float(after), LONGEST_DELAY_S))
        raise ApiUnavailable(trouble)


def path_of(api_version: str, kind: str, namespace: str | None, name: str = "") -> str:
    """Path of an object or, without a name, of all objects of a kind."""
    root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{place}/{KINDS[api_version, kind]}" + (f"/{name}" if name else "")


def _refusal(status: int, content: bytes) -> ApiError:
    try:
        said: Any = msgspec.json.decode(content)
        reason, message = str(said.get("reason", "")), str(said.get("message", ""))
        # So it answers a server-side apply with a field that does not exist, or a list where a mapping belongs.
        is_ours = status == 500 and message.startswith("failed to create typed patch object")
        return ApiError(422 if is_ours else status, reason, message)
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError):
        return ApiError(status, "", content[:500].decode(errors="replace"))
