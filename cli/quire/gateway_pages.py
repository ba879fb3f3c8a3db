"""Inner pages of a gateway, asked for by commands: typed answers, and one sentence for each way to fail."""

from typing import Any, TypeVar

import httpx
import msgspec

from quire.address import base_address
from quire.chat import ServerRefused, ServerUnreachable
from quire_api import wire

T = TypeVar("T", bound=msgspec.Struct)
TIMEOUT_S = 10.0


class GatewayPages:
    """One gateway's pages.

    Raises:
        BadAddress
    """

    def __init__(self, url: str, internal_key: str = "", api_key: str = "") -> None:
        headers = {wire.HEADER_INTERNAL_KEY: internal_key} if internal_key else {}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self.url = base_address(url)
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_S, trust_env=False)

    def ask(self, kind: type[T], path: str, body: dict[str, Any] | None = None) -> T:
        """GET `path`, or POST `body` to it.

        Raises:
            ServerUnreachable: nothing answers.
            ServerRefused: it answers with an error, or is no Quire gateway.
        """
        try:
            answer = self.http.get(path) if body is None else self.http.post(path, json=body)
        except httpx.HTTPError:
            raise ServerUnreachable(
                f"nothing answers at {self.url} . Start a server with `quire up FILE.yaml` or name one with --url."
            ) from None
        if answer.status_code == 401:
            raise ServerRefused(f"{_message(answer)} Pass --internal-key or set QUIRE_INTERNAL_KEY.")
        if answer.is_success:
            try:
                return msgspec.json.decode(answer.content, type=kind)
            except msgspec.MsgspecError:
                pass
        elif answer.status_code != 404 or _error(answer).get("code") == "model_not_found":
            raise ServerRefused(f"the gateway refused: {_message(answer)}")
        raise ServerRefused(f"{self.url} is no Quire gateway of this version; name its base address with --url.")

    def close(self) -> None:
        self.http.close()


def _error(answer: httpx.Response) -> dict[str, Any]:
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = None
    return error if isinstance(error, dict) else {}


def _message(answer: httpx.Response) -> str:
    return str(_error(answer).get("message") or f"status {answer.status_code}.")
