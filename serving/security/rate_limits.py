"""DOC."""

import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.security.credential_files import CredentialsError

# A slot in the file of limits: the first bytes of the SHA-256 of the client's name, and when what it sent is paid off.
_SLOT = struct.Struct("=8sd")


class RateLimits:
    """How much each client has sent, in a file that several processes can share.

    The generic cell rate algorithm: of each client there is only the time at which what it sent is paid off, at its rate.
    Source: ITU-T I.371, as "virtual scheduling". The clock is CLOCK_MONOTONIC, which all processes of a machine share.

    The file is a sequence of slots, in the order in which clients were first seen, and none is ever taken away, so that
    processes that have read different versions of the token file agree. The first slot is nobody's: who locks it may add.
    """

    def __init__(self, path: Path | None):
        if path is None:
            self._file = os.memfd_create("digits-limits")  # needs no directory that can be written
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

    def slot(self, name: str) -> int:
        """Where the client's slot is in the file, made where there is none yet."""
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
                raise CredentialsError(f"the rate limits cannot be kept: {error.strerror}") from error
            return end

    def take(self, slot: int, images: int, images_per_second: float) -> float:
        """Takes `images` off what the slot's client may send; returns 0, or the seconds after which that can be done."""
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
        """Has what the slot's client sent paid off so much earlier, whatever it has sent since."""
        with self._locked(slot):
            key, paid_off = _SLOT.unpack(os.pread(self._file, _SLOT.size, slot))
            os.pwrite(self._file, _SLOT.pack(key, paid_off - seconds), slot)

    @contextmanager
    def _locked(self, slot: int) -> Iterator[None]:
        """Keeps other processes away from a slot. The kernel gives it free when a process ends, however it does."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, _SLOT.size, slot)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, _SLOT.size, slot)
