"""The log on stderr: a line an event, as text for people or as JSON for machines.

An event has a name that never changes and fields; its message is for reading. In JSON every line has `time`, `level`,
`event`, `pid`, `logger` and `message`, besides the event's own fields, and `exception` with the whole traceback; a line that
is no event of ours, as one of gRPC's or asyncio's, is the event "log".
"""

import logging
import sys
import threading
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from pythonjsonlogger.json import JsonFormatter

# How often a line of OpenTelemetry's may come: it complains about every batch that an absent collector does not take.
_SELDOM_SECONDS = 60.0


def configure(form: str, level: str) -> None:
    """Sends the log of the whole process to stderr, the libraries' and Python's warnings too.

    Args:
        form: "text" or "json".
        level: the least that is logged, in lower case. Libraries' own lines for debugging never are.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_Seldom("opentelemetry", _SELDOM_SECONDS))
    handler.setFormatter(_Json() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(handlers=[handler], level=max(number, logging.INFO), force=True)
    logging.getLogger("serving").setLevel(number)
    logging.captureWarnings(True)
    sys.excepthook = _log_crash
    threading.excepthook = _log_crash_of_thread


def log_event(
    logger: logging.Logger, level: int, event: str, message: str, /, *, exc_info: bool = False, **fields: object
) -> None:
    """Logs an event.

    Args:
        logger: where.
        level: one of logging's.
        event: its name, which never changes.
        message: what text shows of it; whole, with no % to fill in.
        exc_info: whether to add the exception that is being dealt with.
        fields: what JSON shows besides. Never an image, never a token.
    """
    if logger.isEnabledFor(level):
        logger.log(level, "%s", message, exc_info=exc_info, extra={"event": event, "fields": fields})


class _Json(JsonFormatter):
    """One object a line."""

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_data.update(
            time=datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            level=record.levelname.lower(),
            event=getattr(record, "event", "log"),
            pid=record.process,
            logger=record.name,
            message=record.getMessage(),
            **getattr(record, "fields", {}),
        )
        if "exc_info" in message_dict:
            log_data["exception"] = message_dict["exc_info"]


class _Seldom(logging.Filter):
    """Lets a library's lines through one in so many seconds; those of others all."""

    def __init__(self, library: str, seconds: float):
        super().__init__(library)
        self._seconds = seconds
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


def _log_crash_of_thread(crash: threading.ExceptHookArgs) -> None:
    if crash.exc_value is not None:  # it is None when Python is being taken down
        _log_crash(crash.exc_type, crash.exc_value, crash.exc_traceback)


def _log_crash(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """What would otherwise be a traceback of many lines on stderr."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logging.getLogger("serving").critical("%s", error, exc_info=(kind, error, traceback), extra={"event": "crashed"})
