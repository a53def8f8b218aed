"""Reads configuration from regular files only, and only so much: a FIFO never ends, a device or a huge file fills memory."""

import errno
import os
import stat
from pathlib import Path


class NotRegular(OSError):
    """A FIFO, a device, a socket or a directory in place of a regular file."""


def open_regular(path: Path) -> int:
    """Opens a regular file for reading; symbolic links are followed.

    Returns:
        The file descriptor.

    Raises:
        NotRegular: the file is of another kind.
        OSError: the file can't be opened. `strerror` has the reason.
    """
    _require_regular(path.stat())  # before it is opened: opening a device can have effects
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _require_regular(os.fstat(descriptor))  # another file may have taken its place
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Reads a regular file of at most `most_bytes` bytes.

    Raises:
        OSError: as `open_regular`, or the file is larger. `strerror` has the reason.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes} bytes")
    return content


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise NotRegular(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise NotRegular(errno.EINVAL, "it is not a regular file")
