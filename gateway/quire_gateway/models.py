"""What the gateway knows of a replica's model, and prompts turned into the engine's own tokens.

Model facts and tokenizer come from the engine. Tokenizers are addressed by their content: replicas and deployments with
equal files share one.
"""

import asyncio
from array import array
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from quire_api import wire
from quire_gateway.health import internal_headers
from quire_gateway.upstream import UpstreamFailure, UpstreamPool
from quire_text.bundle import TokenizerBundle
from quire_text.errors import MalformedTokenizer
from quire_text.tokenizer import Tokenizer

_MAX_INFO_BYTES = 1 << 20
_MAX_BUNDLE_BYTES = 256 << 20
_INLINE_BYTES = 2048
_BYTES_PER_TOKEN = 4


class Prompt(msgspec.Struct, frozen=True):
    """A request's prompt as far as routing needs it.

    tokens: the (first) prompt's ids, empty where the gateway cannot know them.
    count: tokens of all prompts together, estimated from the bytes where `tokens` is empty.
    """

    tokens: list[int]
    count: int
    salt: str = ""


class ModelStore:
    """Tokenizers by digest."""

    def __init__(self, threads: int = 2) -> None:
        self._tokenizers: dict[str, Tokenizer] = {}
        self._loading: dict[str, asyncio.Lock] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")

    async def learn(self, pool: UpstreamPool, internal_key: str, timeout_s: float) -> wire.ModelInfo | None:
        """Fetch the facts of the replica at `pool`, and its tokenizer unless one of equal content is here.

        None from an engine that does not tell (404): it is routed to by load alone.

        Raises:
            UpstreamFailure: no answer, or a bad one.
        """
        headers = internal_headers(internal_key)
        status, body = await pool.fetch(
            "GET", "/internal/v1/model", headers=headers, timeout_s=timeout_s, max_bytes=_MAX_INFO_BYTES
        )
        if status == 404:
            return None
        if status != 200:
            raise UpstreamFailure("malformed", f"/internal/v1/model answered {status}; is the internal key the same?")
        try:
            info = msgspec.json.decode(body, type=wire.ModelInfo)
        except msgspec.MsgspecError as error:
            raise UpstreamFailure("malformed", f"/internal/v1/model cannot be read: {error}") from None
        digest = info.tokenizer_digest
        if digest and digest not in self._tokenizers:
            async with self._loading.setdefault(digest, asyncio.Lock()):
                if digest not in self._tokenizers:
                    await self._load(pool, headers, digest, timeout_s)
        return info

    async def prompt(self, path: str, body: Mapping[str, Any], size: int, info: wire.ModelInfo | None) -> Prompt:
        """The prompt of the request `body` (`size` bytes of JSON) to `path`, in tokens of the model `info`.

        What the gateway cannot tokenise the engine will refuse in its own words, so it is only estimated here.
        """
        tokenizer = None if info is None else self._tokenizers.get(info.tokenizer_digest)
        estimate = Prompt([], max(1, size // _BYTES_PER_TOKEN))
        # A template of the client's own could run for ever; it is the engine's choice whether to run it.
        if info is None or tokenizer is None or body.get("chat_template") is not None:
            return estimate
        encode = _encode_chat if path == "/v1/chat/completions" else _encode_completion
        try:
            if size <= _INLINE_BYTES:
                return encode(tokenizer, body, info.max_model_len)
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, encode, tokenizer, body, info.max_model_len
            )
        except Exception:
            return estimate

    def retain(self, digests: Iterable[str]) -> None:
        """Drop tokenizers that none of `digests` names."""
        kept = set(digests)
        for digest in [digest for digest in self._tokenizers if digest not in kept]:
            del self._tokenizers[digest]
            self._loading.pop(digest, None)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _load(
        self, pool: UpstreamPool, headers: list[tuple[bytes, bytes]], digest: str, timeout_s: float
    ) -> None:
        status, packed = await pool.fetch(
            "GET", "/internal/v1/tokenizer", headers=headers, timeout_s=timeout_s, max_bytes=_MAX_BUNDLE_BYTES
        )
        if status != 200:
            raise UpstreamFailure("malformed", f"/internal/v1/tokenizer answered {status}")
        try:
            loop = asyncio.get_running_loop()
            self._tokenizers[digest] = await loop.run_in_executor(self._pool, _unpack, packed, digest)
        except MalformedTokenizer as error:
            raise UpstreamFailure("malformed", str(error)) from None


def _unpack(packed: bytes, digest: str) -> Tokenizer:
    # Jinja takes a third of the imports of a start: in a thread, while the gateway listens and finds its peers.
    import quire_text.chat  # noqa: F401

    bundle = TokenizerBundle.unpack(packed)
    if bundle.digest != digest:
        raise MalformedTokenizer(f"The tokenizer's digest is {bundle.digest}, its engine says {digest}.")
    return Tokenizer.from_bundle(bundle)


def _encode_chat(tokenizer: Tokenizer, body: Mapping[str, Any], window: int) -> Prompt:
    from quire_text.chat import encode_chat

    tokens = encode_chat(tokenizer, body, window=window)
    return Prompt(tokens, len(tokens))


def _encode_completion(tokenizer: Tokenizer, body: Mapping[str, Any], window: int) -> Prompt:
    given = body["prompt"]
    prompts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    adds = body.get("add_special_tokens", True)
    encoded = [
        tokenizer.encode(each, add_special_tokens=adds, window=window) if isinstance(each, str) else _token_ids(each)
        for each in prompts
    ]
    return Prompt(encoded[0], sum(len(each) for each in encoded))


def _token_ids(given: Any) -> list[int]:
    """`given`, if it is what blocks can be hashed of."""
    if not isinstance(given, list):
        raise TypeError("token ids come as a list")
    array("I", given)
    return given
