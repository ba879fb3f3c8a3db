"""Why a request is not taken."""

from quire_api.errors import UserError


class QueueFull(UserError):
    """As many requests wait as may."""


class Draining(UserError):
    """The engine finishes what it has and takes nothing new."""


class EmptyPrompt(UserError):
    """A prompt without tokens."""


class PromptTooLong(UserError):
    """The prompt leaves no room for an answer in the model's window."""


class KVTooSmall(UserError):
    """The request could grow beyond the whole KV cache."""


class BadResume(UserError):
    """What a resumed request is said to have put out does not fit it."""
