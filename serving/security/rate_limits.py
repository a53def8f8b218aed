"""Rate limits of clients, in a file that several processes can share."""

import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.security.credential_files import CredentialsError

# A slot of the file: the first 8 bytes of the SHA-256 of the client's name, and the time at which its debt is paid off.
_SLOT = struct.Struct("=8sd")


class RateLimits:
    """Rate limiter by the generic cell rate algorithm (GCRA).

    The state of a client is one number: the time at which the images that it has sent are paid off, at its rate. The clock
    is CLOCK_MONOTONIC, which all processes of a machine share. Source: ITU-T I.371, "virtual scheduling algorithm".

    The file is a sequence of slots, in the order in which clients were first seen. Slots are never removed, so that
    processes that have read different versions of the token file agree. The first slot belongs to no client: the process
    that locks it may append one.
    """

    def __init__(self, path: Path | None):
        """Opens the file, or one in memory if `path` is None. Raises CredentialsError."""
        if path is None:
            self._file = os.memfd_create("digits-limits")  # works without a writable directory
            return
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CredentialsError(f"{path}, for rate limits, cannot be opened: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def find_slot(self, name: str) -> int:
        """Returns the offset of a client's slot in the file; appends the slot if there is none. Raises CredentialsError."""
        key = hashlib.sha256(name.encode()).digest()[:8]
        with self._locked(0):
            end = max(os.fstat(self._file).st_size, _SLOT.size)
            slots = os.pread(self._file, end - _SLOT.size, _SLOT.size)
            for index, (other, _) in enumerate(_SLOT.iter_unpack(slots), start=1):
                if other == key:
                    return index * _SLOT.size
            try:
                os.pwrite(self._file, _SLOT.pack(key, 0.0), end)
            except OSError as error:
                raise CredentialsError(f"the rate limits cannot be stored: {error.strerror}") from error
            return end

    def take(self, slot: int, images: int, images_per_second: float) -> float:
        """Charges `images` to a client.

        Returns:
            0 if they were charged, else the seconds after which they can be.
        """
        burst = max(1.0, images_per_second)
        with self._locked(slot):
            now = time.monotonic()
            key, paid_off = _SLOT.unpack(os.pread(self._file, _SLOT.size, slot))
            owed = max(0.0, paid_off - now)  # seconds
            wait = owed - (burst - min(images, burst)) / images_per_second
            if wait > 0:
                return float(wait)
            os.pwrite(self._file, _SLOT.pack(key, now + owed + images / images_per_second), slot)
            return 0.0

    def give_back(self, slot: int, seconds: float) -> None:
        """Reduces the debt of a client by `seconds`; images that it has sent since stay charged."""
        with self._locked(slot):
            key, paid_off = _SLOT.unpack(os.pread(self._file, _SLOT.size, slot))
            os.pwrite(self._file, _SLOT.pack(key, paid_off - seconds), slot)

    @contextmanager
    def _locked(self, slot: int) -> Iterator[None]:
        """Locks a slot against other processes. The kernel releases the lock when a process dies."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, _SLOT.size, slot)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, _SLOT.size, slot)
