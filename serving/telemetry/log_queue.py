"""Writes the log from a thread of its own, so that a full pipe or a slow disk never holds the event loop."""

import logging
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable

_MAX_WAITING_BYTES = 4 << 20  # beyond it, lines are dropped and counted
_FLUSH_SECONDS = 1.0  # for the last lines of the process
_POLL_SECONDS = 0.005

_EVENT = "log_lines_dropped"


class LogQueue(logging.Handler):
    """Formats each record where it is logged, and hands the line to a thread that writes it to stderr.

    Attributes:
        count_dropped: called for each line that found the queue full.
    """

    def __init__(self) -> None:
        """Starts the thread."""
        super().__init__()
        self.count_dropped: Callable[[], object] = lambda: None
        # A descriptor of its own, since `native_lines` replaces stderr. Without stderr, its number may be that of any file
        # that is opened later.
        self._descriptor = os.dup(sys.stderr.fileno()) if sys.stderr else os.open(os.devnull, os.O_WRONLY)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._taken_in = 0  # bytes: changed by those who log, one at a time
        self._written = 0  # bytes, also of lines that could not be written: changed by the thread
        self._dropped = self._reported = 0  # lines
        # A daemon: nobody may ever read the pipe that the thread waits for.
        threading.Thread(target=self._write_lines, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queues a line, or drops it. `logging` calls this from one thread at a time."""
        try:
            line = self._line(record)
        except Exception:  # wrong arguments of a line must not end what it reports on
            line = b""
        if not line or self._taken_in - self._written + len(line) > _MAX_WAITING_BYTES:
            self._dropped += 1
            self.count_dropped()
            return
        self._taken_in += len(line)
        self._lines.put(line)

    def flush(self) -> None:
        """Waits until all lines are written, for at most a second."""
        end = time.monotonic() + _FLUSH_SECONDS
        while self._written < self._taken_in and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(errors="backslashreplace") + b"\n"

    def _write_lines(self) -> None:
        while True:
            line = self._lines.get()
            self._write(line)
            self._written += len(line)
            lost = self._dropped - self._reported
            if lost:
                self._reported += lost
                self._write(self._line(self._loss(lost)))

    def _write(self, line: bytes) -> None:
        """Writes one line, as long as that takes; loses it where nothing can be written, as on a full disk.

        Each line is one write: lines of several processes meet in one pipe, which keeps short writes whole.
        """
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # someone has made the pipe non-blocking
                select.select((), (self._descriptor,), ())
            except OSError:
                self._dropped += 1
                self.count_dropped()
                return

    @staticmethod
    def _loss(lines: int) -> logging.LogRecord:
        message = f"{lines} lines of the log were dropped: nobody took them as fast as they came"
        fields = {"name": "serving.telemetry", "levelno": logging.WARNING, "levelname": "WARNING", "msg": message}
        return logging.makeLogRecord({**fields, "event": _EVENT, "fields": {"lines": lines}})
