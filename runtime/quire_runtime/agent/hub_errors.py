"""What the Hub client's errors mean to a user."""

from collections.abc import Iterator
from pathlib import Path

import httpx
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from quire_api.errors import UserError
from quire_runtime.agent.disk import disk_error
from quire_runtime.agent.errors import (
    InvalidSource,
    SourceUnreachable,
    WeightsNotFound,
    WeightsUnauthorized,
)
from quire_runtime.agent.source import HubSource


def as_user_error(error: BaseException, source: HubSource, cache_dir: Path) -> UserError | None:
    """The error to show, or None for one that is nobody's mistake but ours."""
    name = f"hf://{source.repository}"
    for cause in _causes(error):
        match cause:
            case UserError():
                return cause
            case RevisionNotFoundError():
                return WeightsNotFound(
                    f"{name} has no revision {source.revision!r}. Name a branch, tag or commit of it."
                )
            case HfHubHTTPError():
                return _refused(cause.response, name)
            case HFValidationError():
                return InvalidSource(f"{name} is not a valid repository name.")
            case httpx.TransportError() | OfflineModeIsEnabled():
                return _unreachable(name, str(cause) or type(cause).__name__)
            case OSError() if told := disk_error(cause, name, cache_dir):
                return told
            case OSError() if "Consistency check failed" in str(cause):
                return _unreachable(name, "the connection broke off before the file was complete")
    if isinstance(error, LocalEntryNotFoundError):
        return _unreachable(name, str(error).splitlines()[0])
    return None


def _refused(response: httpx.Response, name: str) -> UserError:
    status = response.status_code
    if status in (401, 403):
        return WeightsUnauthorized(
            f"The Hub refuses access to {name} ({status}): it is private, gated, or does not exist. "
            "Check the name, accept the model's terms on its page, and give a token that may read it "
            "(HF_TOKEN; in a cluster the entry `token` of the Secret that spec.model.auth names)."
        )
    if status == 404:
        return WeightsNotFound(
            f"{name} was not found on {response.request.url.host}. Check the name of the repository."
        )
    return _unreachable(name, f"it answered {status}")


def _unreachable(name: str, detail: str) -> SourceUnreachable:
    return SourceUnreachable(
        f"{name} could not be fetched ({detail}), and it is not complete on this machine. "
        "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, then start again."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
