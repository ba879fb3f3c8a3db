"""What every generation request needs before its prompts are known: body, id, caller, sampling, answer's headers."""

import contextlib
from collections.abc import Sequence

from starlette.requests import Request

from quire_api.blocks import caller_salt
from quire_api.openai import PRIORITIES, ChatCompletionRequest, CompletionRequest, InvalidRequest
from quire_api.replay import RESUME_FIELD
from quire_api.sampling import SamplingParams
from quire_api.wire import HEADER_CACHE_SALT, HEADER_PRIORITY
from quire_runtime.server.auth import caller_of
from quire_runtime.server.generation import Generation
from quire_runtime.server.ids import arrived_at, request_id_of
from quire_runtime.server.prompts import require_known
from quire_runtime.server.replay import Replay
from quire_runtime.server.service import Service

HEADER_WARNING = "x-quire-warning"


def begin(
    service: Service,
    request: Request,
    ask: ChatCompletionRequest | CompletionRequest,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    replay: Replay,
) -> Generation:
    """The generation of a checked request, not yet started.

    Raises:
        InvalidRequest: the parameters name tokens that the vocabulary does not have, or internal headers are malformed.
        NotReady
    """
    require_known(list(params.logit_bias or ()), service.tokenizer, "logit_bias")
    require_known(params.stop_token_ids, service.tokenizer, "stop_token_ids")
    for choice in replay.so_far.choices:
        require_known(choice.output_token_ids, service.tokenizer, RESUME_FIELD)
    caller = caller_of(request.scope)
    priority, salt = ask.priority or 0, ask.cache_salt or ""
    if caller.is_internal:
        priority = _priority(request.headers.get(HEADER_PRIORITY), priority)
        salt = request.headers.get(HEADER_CACHE_SALT, salt)
    elif caller.key_digest:
        salt = caller_salt(caller.key_digest, salt)
    return Generation(
        service,
        prompts,
        params,
        request_id=request_id_of(request.scope),
        arrived=arrived_at(request.scope),
        priority=priority,
        cache_salt=salt,
        replay=replay,
    )


def warnings(unknown: Sequence[str]) -> dict[str, str]:
    """A header that names the fields which were ignored."""
    if not unknown:
        return {}
    names = ", ".join(unknown).encode("ascii", "backslashreplace").decode()
    return {HEADER_WARNING: "ignored unknown fields: " + "".join(c if c.isprintable() else "?" for c in names)[:300]}


def _priority(text: str | None, default: int) -> int:
    if text is None:
        return default
    with contextlib.suppress(ValueError):
        if (priority := int(text)) in PRIORITIES:
            return priority
    raise InvalidRequest(
        f"The header {HEADER_PRIORITY} must be a whole number from {PRIORITIES[0]} to {PRIORITIES[-1]}."
    )
