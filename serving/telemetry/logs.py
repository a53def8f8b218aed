"""The log on stderr: one line per event, as text for people or as JSON for machines.

An event has a name that never changes, fields, and a message for people. Each JSON line has `time`, `level`, `event`,
`pid`, `logger` and `message`, the fields of the event, and `exception` with the whole traceback if there is one. Lines of
libraries, such as gRPC and asyncio, have the event "log". A line that the tasks of a traced call write carries the call's
`trace_id` and `span_id`, in both formats. Lines of a run, such as `run_failed`, carry neither: a run serves several calls.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from serving.telemetry.log_queue import LogQueue
from serving.telemetry.log_text import clean, clean_traceback

trace_ids: ContextVar[Mapping[str, str]] = ContextVar("trace_ids", default=MappingProxyType({}))
"""Fields for each line that is logged in the current context: trace_id and span_id of a traced call, else empty.

A task inherits the context of its creator: one that outlives the call must be created outside the call's context, or its
lines carry the ids of a call that has ended.
"""

# Minimum interval between two lines of OpenTelemetry, which complains about every batch that an absent collector refuses.
_OPENTELEMETRY_INTERVAL_SECONDS = 60.0


def configure(form: str, level: str) -> None:
    """Sends the log of the whole process to stderr, with the lines of libraries and Python's warnings.

    Args:
        form: "text" or "json".
        level: the lowest level to log, in lower case. Debug lines of libraries are never logged.

    A thread writes the lines. Where nobody takes them, the queue fills up, and further lines are dropped.
    """
    handler = LogQueue()
    handler.addFilter(_RateLimit("opentelemetry", _OPENTELEMETRY_INTERVAL_SECONDS))
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(handlers=[handler], level=max(number, logging.INFO), force=True)
    logging.getLogger("serving").setLevel(number)
    logging.captureWarnings(True)
    sys.excepthook = _log_crash
    threading.excepthook = _log_thread_crash


def log_event(
    logger: logging.Logger, level: int, event: str, message: str, /, *, exc_info: bool = False, **fields: object
) -> None:
    """Logs an event.

    Args:
        logger: the logger of the calling module.
        level: a level of the logging module.
        event: the event's name, which never changes.
        message: the line for people, complete, without % placeholders.
        exc_info: True adds the exception that is being handled.
        fields: further fields of the JSON line. Never pass an image or a token.
    """
    if logger.isEnabledFor(level):
        logger.log(level, "%s", message, exc_info=exc_info, extra={"event": event, "fields": fields})


def flush() -> None:
    """Waits until the lines so far are written, for at most a second."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def count_dropped_lines(count: Callable[[], object]) -> None:
    """Has each line counted that is dropped from now on; without `configure`, there are none."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogQueue):
            handler.count_dropped = count


class _JsonFormatter(JsonFormatter):
    """Formats each record as one JSON object on one line."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        return clean_traceback(str(super().formatException(ei)), "")

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_data.update(
            time=datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            level=record.levelname.lower(),
            event=getattr(record, "event", "log"),
            pid=record.process,
            logger=record.name,
            message=clean(record.getMessage(), one_line=False),
            **trace_ids.get(),
        )
        for name, value in getattr(record, "fields", {}).items():
            log_data[name] = clean(value, one_line=False) if isinstance(value, str) else value
        if "exc_info" in message_dict:
            log_data["exception"] = message_dict["exc_info"]


class _TextFormatter(logging.Formatter):
    """Formats each record as time, level and message, followed by the trace ids if there are any."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        record.message = clean(record.message, one_line=True)
        line = super().formatMessage(record)
        ids = "".join(f" {name}={value}" for name, value in trace_ids.get().items())
        return line + ids

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        return clean_traceback(super().formatException(ei), "  ")


class _RateLimit(logging.Filter):
    """Passes at most one line of a library per interval, and all lines of others."""

    def __init__(self, library: str, interval_seconds: float):
        super().__init__(library)
        self._interval_seconds = interval_seconds
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._interval_seconds
        return True


def _log_thread_crash(crash: threading.ExceptHookArgs) -> None:
    if crash.exc_value is not None:  # None while the interpreter shuts down
        _log_crash(crash.exc_type, crash.exc_value, crash.exc_traceback)


def _log_crash(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Logs an uncaught exception as one event, in place of Python's traceback of many lines."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logging.getLogger("serving").critical("%s", error, exc_info=(kind, error, traceback), extra={"event": "crashed"})
