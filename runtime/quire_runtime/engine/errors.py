"""How an engine, or a request in it, can fail its caller."""

from quire_api.errors import UserError


class EngineDied(Exception):
    """The engine process ended while it was needed; the message says what is known of the cause, `reason` in a word."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or type(self).__name__


class EngineClosed(EngineDied):
    """Its owner ended it."""


class EngineStartFailed(UserError):
    """The engine could not start because of something the user can change; `reason` names the error's class."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or type(self).__name__


class RequestRefused(UserError):
    """The engine does not take this request. `code` is one of messages.RequestRejected's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
