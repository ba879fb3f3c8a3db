"""What can be wrong with a tokenizer, a chat template or the messages given to it."""

from quire_api.errors import UserError


class MalformedTokenizer(UserError):
    """A model's tokenizer files are missing or cannot be read."""


class ChatTemplateError(UserError):
    """The chat template is missing, does not compile, or refused the messages."""
