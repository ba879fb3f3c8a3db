"""What can be wrong with a model directory."""

from quire_api.errors import UserError


class UnsupportedArchitecture(UserError):
    """The model is of a kind, or uses a feature, that this release cannot run."""


class MalformedModel(UserError):
    """The directory, or a file in it, is missing, unreadable or makes no sense."""


class WeightsMismatch(UserError):
    """The checkpoint's tensors are not those that config.json describes."""


class DoesNotFit(UserError):
    """The model cannot run in the memory it was given."""


class PickleRefused(UserError):
    """The weights are Python pickles, which can run code when they are opened."""
