"""Who asks: API keys, what each may do, and what it has used. Names go into logs and metrics, keys never do."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from quire_api import wire
from quire_api.blocks import caller_salt
from quire_gateway.errors import Refusal
from quire_gateway.limits import Usage


@dataclass(slots=True)
class Caller:
    """One API key of one deployment, or everybody where there are no keys (with an empty name)."""

    key: wire.ApiKey
    salt_seed: bytes | None = None
    """What its cached prefixes are kept apart by; None: by what the request says alone."""
    usage: Usage = field(default_factory=Usage)

    @property
    def name(self) -> str:
        return self.key.name

    def salt(self, body: Mapping[str, Any]) -> str:
        """What keeps this request's cached prefixes from others'."""
        asked = body.get("cache_salt")
        asked = asked if isinstance(asked, str) else ""
        return asked if self.salt_seed is None else caller_salt(self.salt_seed, asked)


class Callers:
    """The callers of one deployment. A key that is exchanged under its name keeps what it has used."""

    def __init__(self) -> None:
        self._by_digest: Mapping[bytes, Caller] = {}
        self._by_name: dict[str, Caller] = {}
        self.everybody = Caller(wire.ApiKey(name="", key=""))
        """Who asks where there are no keys."""
        self.is_open = True
        """There are no keys: everybody may ask."""

    def apply(self, table: wire.Deployment) -> None:
        """Take over the keys of `table`."""
        self.is_open = not table.api_keys
        self.everybody.key = wire.ApiKey(name="", key="", limits=table.limits)
        by_name = {}
        by_digest: dict[bytes, Caller] = {}
        for entry in table.api_keys:
            digest = digest_of(entry if isinstance(entry, str) else entry.key)
            key = wire.ApiKey(name=digest.hex()[:8], key=entry) if isinstance(entry, str) else entry
            seed = digest
            if key.cache_group:
                seed = sha256(f"{table.namespace}/{table.name}/{key.cache_group}".encode()).digest()
            known = self._by_name.get(key.name)
            caller = Caller(key, None if table.shares_cache else seed, Usage() if known is None else known.usage)
            by_name[key.name] = caller
            # Two keys that are alike are one key, with the first one's rights.
            by_digest.setdefault(digest, caller)
        self._by_name, self._by_digest = by_name, by_digest

    def find(self, token: str) -> Caller | None:
        """Who shows `token`; by its digest, so that the time it takes tells nothing of how much of it was right."""
        if self.is_open:
            return self.everybody
        return self._by_digest.get(digest_of(token))

    def digests(self) -> Iterable[bytes]:
        """Of all keys."""
        return self._by_digest

    def named(self, name: str) -> Caller | None:
        """The caller of that name; empty: everybody, where there are no keys."""
        return self._by_name.get(name) if name else self.everybody

    def everyone(self) -> list[Caller]:
        """All callers that there are."""
        return [self.everybody] if self.is_open else list(self._by_name.values())

    def may_use(self, token: str) -> bool:
        """Whether `token` opens this deployment now."""
        caller = self.find(token)
        return caller is not None and not _has_expired(caller)

    def authorize(self, token: str) -> Caller:
        """
        Raises:
            Refusal: 401, the token is missing, not one of the deployment's keys, or has expired.
        """
        caller = self.find(token)
        if caller is None:
            if not token:
                message = "This model needs an API key. Send it as `Authorization: Bearer KEY`."
                raise Refusal(401, "missing_api_key", message)
            raise Refusal(401, "invalid_api_key", "The API key is not valid for this model. Check the key.")
        if _has_expired(caller):
            message = f"The API key {caller.name} has expired. Ask whoever gave it to you for a new one."
            raise Refusal(401, "expired_api_key", message)
        return caller


def digest_of(token: str) -> bytes:
    """What a key is known by."""
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def _has_expired(caller: Caller) -> bool:
    return caller.key.expires_at is not None and caller.key.expires_at <= time.time()
