"""Why weights could not be fetched."""

from quire_api.errors import UserError
from quire_runtime.model.errors import UnsupportedArchitecture


class InvalidSource(UserError):
    """The source is not written as a path or an address that is known."""


class UnsupportedScheme(UserError):
    """The source names a store that cannot be fetched from here."""


class WeightsUnauthorized(UserError):
    """The store wants credentials, or does not accept those it was given."""


class WeightsNotFound(UserError):
    """There is no such directory, repository, revision, or no weights in it."""


class WeightsCorrupt(UserError):
    """What the store sends is not what its checksum says, or a file on this machine is cut short."""


class SourceChanged(UserError):
    """A file was replaced in the store while it was being fetched."""


class DiskFull(UserError):
    """The model does not fit on the disk that it was to be kept on."""


class CacheNotWritable(UserError):
    """The directory that downloads are kept in cannot be written to."""


class SourceUnreachable(UserError):
    """The store does not answer, or broke off, and the model is not complete on this machine."""


EXIT_CODES: dict[type[UserError], int] = {
    InvalidSource: 2,
    UnsupportedScheme: 2,
    WeightsUnauthorized: 10,
    WeightsNotFound: 11,
    DiskFull: 12,
    SourceUnreachable: 13,
    WeightsCorrupt: 14,
    SourceChanged: 15,
    CacheNotWritable: 16,
    UnsupportedArchitecture: 17,
}
"""How the agent ends; the name of the class is the reason in its termination message."""
