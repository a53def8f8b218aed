"""What libraries in C write to stderr: each line goes to the log, and no library ever waits for a reader.

libjpeg warns of many a damaged file. A pipe that nobody reads would hold the thread that decodes, and with it all crops.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator

from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

_STDERR = 2
_READ_BYTES = 1 << 16
_LINES_A_SECOND = 10  # more are left out and counted: callers can cause any number


@contextlib.contextmanager
def native_lines_to_log() -> Iterator[None]:
    """Logs what is written to the file descriptor of stderr meanwhile. The log must have been configured before."""
    try:
        original = os.dup(_STDERR)
    except OSError:  # a process without stderr
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # what finds the pipe full is lost
    os.dup2(writing, _STDERR)
    os.close(writing)
    # A daemon: a child process that has inherited the descriptor may keep the pipe open.
    reader = threading.Thread(target=_log_lines, args=(reading,), name="native-lines", daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.dup2(original, _STDERR)
        os.close(original)
        reader.join(1)


def _log_lines(reading: int) -> None:
    """Logs all lines of a pipe, until its last writer has closed it."""
    rest, left, left_out, second = b"", _LINES_A_SECOND, 0, 0
    while chunk := os.read(reading, _READ_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[-_READ_BYTES:]
        for line in lines:
            now = int(time.monotonic())
            if now != second:
                if left_out:
                    _log(f"{left_out} more lines of libraries were left out")
                left, left_out, second = _LINES_A_SECOND, 0, now
            if left:
                left -= 1
                _log(line.decode(errors="backslashreplace"))
            else:
                left_out += 1
    os.close(reading)


def _log(line: str) -> None:
    log_event(log, logging.WARNING, "native_line", line)
