"""What the disk's errors mean to a user, and whether a model fits."""

import errno
import shutil
from pathlib import Path

from quire_api.errors import UserError
from quire_runtime.agent.errors import CacheNotWritable, DiskFull

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
SPARE_BYTES = 16 << 20
MORE_SPACE = "Free some space, name another download directory, or in a cluster a larger spec.model.volume"


def check_space(needed: int, place: Path, source: object) -> None:
    """
    Raises:
        DiskFull: `needed` bytes and a little more are not free where `place` is or will be.
    """
    standing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    free = shutil.disk_usage(standing).free
    if needed and needed + SPARE_BYTES > free:
        raise DiskFull(
            f"{source} needs {needed / 1e9:.2f} GB, but {standing} has {free / 1e9:.2f} GB free. {MORE_SPACE}."
        )


def disk_error(error: OSError, source: object, place: Path) -> UserError | None:
    """The error to show for one of the file system's, or None if it is about neither space nor rights."""
    if error.errno in NO_SPACE:
        return DiskFull(f"The disk of {place} was full before {source} was complete. {MORE_SPACE}, then start again.")
    if error.errno in NOT_WRITABLE:
        return CacheNotWritable(
            f"Downloads cannot be kept in {place} ({error.strerror}). Name another download directory."
        )
    return None
