"""What can be wrong with a tokenizer, a chat template or the messages given to it."""

from quire_api.errors import UserError


class MalformedTokenizer(UserError):
    """A model's tokenizer files are missing or cannot be read."""


class BadText(UserError):
    """A text has no tokens: it is not Unicode."""


class TextTooLong(UserError):
    """A text has more tokens than its reader takes, known from its length alone."""


class ChatTemplateError(UserError):
    """The chat template is missing, does not compile, or refused the messages."""
