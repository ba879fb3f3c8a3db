"""Why weights could not be fetched."""

from quire_api.errors import UserError


class InvalidSource(UserError):
    """The source is not written as a path, file:// or hf:// address."""


class UnsupportedScheme(UserError):
    """The source names a store that this release cannot fetch from."""


class WeightsUnauthorized(UserError):
    """The store wants a token, or does not accept the one it was given."""


class WeightsNotFound(UserError):
    """There is no such directory, repository, revision, or no weights in it."""


class DiskFull(UserError):
    """The model does not fit on the disk that it was to be kept on."""


class CacheNotWritable(UserError):
    """The directory that downloads are kept in cannot be written to."""


class SourceUnreachable(UserError):
    """The store does not answer, or broke off, and the model is not complete on this machine."""
