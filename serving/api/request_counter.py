"""Counts and logs the requests of all methods, whichever way they are answered."""

import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import errors
from serving.call import Call
from serving.errors import Code, RequestError
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics

# A label of digits_rejected_requests_total beside the reasons of the error classes.
_CANCELLED = "cancelled"

# A caller whose deadline passes cancels its call, and the cancellation arrives a little before the deadline does here.
_DEADLINE_SLACK_SECONDS = 0.01

log = logging.getLogger("serving.api.dispatch")  # as in 0.1.0: operators may have set the level of this logger


class RequestCounter:
    """The metrics of requests, and the log line that each has at level debug."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        # labels() takes longer than the counting itself.
        self._seconds = functools.cache(metrics.request_seconds.labels)
        self._requests = functools.cache(metrics.requests.labels)
        for reason in {error.reason for error in errors.request_errors()} | {_CANCELLED}:
            metrics.rejected_requests.labels(
                reason
            )  # exported from 0: Prometheus sees no increase in a series that starts at 1

    def begin(self) -> None:
        """Counts a request that is being answered, until `end` or `end_all`."""
        self._metrics.in_flight_requests.inc()

    def end(self, method: str, code: Code, call: Call, seconds: float) -> None:
        """Counts a request that has ended with `code` after `seconds`."""
        self._metrics.in_flight_requests.dec()
        exemplar = None if call.span is None else call.span.exemplar
        self._seconds(method).observe(seconds, exemplar)
        self._requests(method, code.name).inc()
        if log.isEnabledFor(logging.DEBUG):
            _log_call(method, code, call, seconds)

    def end_all(self, method: str, code: Code, calls: Sequence[Call], seconds: NDArray[np.float64]) -> None:
        """Counts n requests without spans that have ended with the same code, after `seconds`, (n,)."""
        self._metrics.in_flight_requests.dec(len(calls))
        self._seconds(method).observe_all(seconds)
        self._requests(method, code.name).inc(len(calls))
        if log.isEnabledFor(logging.DEBUG):
            for call, taken in zip(calls, seconds.tolist(), strict=True):
                _log_call(method, code, call, taken)

    def reject(self, reason: str) -> None:
        """Counts the reason of a request that ends without an answer, beside its end."""
        self._metrics.rejected_requests.labels(reason).inc()

    def reject_cancelled(self, call: Call) -> Code:
        """Counts the reason of a call that its caller has cancelled; returns the code."""
        code = code_of_cancelled(call)
        self.reject(errors.DeadlineExceeded.reason if code is Code.DEADLINE_EXCEEDED else _CANCELLED)
        return code

    def refuse(self, method: str, error: RequestError) -> None:
        """Counts a call that ends with an error before any of its requests is answered."""
        self.reject(error.reason)
        self._requests(method, error.code.name).inc()

    def refuse_cancelled(self, method: str, call: Call) -> None:
        """Counts a call that its caller has cancelled before any of its requests is answered."""
        self._requests(method, self.reject_cancelled(call).name).inc()

    def log_refusal(self, method: str, error: RequestError, peer: Callable[[], str]) -> None:
        """Logs a call that was refused before any of its requests; `peer` returns the caller's address."""
        if log.isEnabledFor(logging.DEBUG):
            _log_call(method, error.code, Call(peer=peer), 0.0)


def code_of_cancelled(call: Call) -> Code:
    """Returns the code of a call that its caller has cancelled: gRPC cancels a call whose deadline passes, too."""
    late = call.deadline <= time.monotonic() + _DEADLINE_SLACK_SECONDS
    return Code.DEADLINE_EXCEEDED if late else Code.CANCELLED


def _log_call(method: str, code: Code, call: Call, seconds: float) -> None:
    fields: dict[str, Any] = {
        "method": method,
        "code": code.name,
        "images": call.images,
        "duration_ms": round(seconds * 1000, 3),
        "model": call.model,
        "version": call.version,
        "client": call.client.name if call.client else "",
        "peer": call.peer(),
    }
    line = " ".join(f"{name}={value}" for name, value in fields.items() if value != "")
    log_event(log, logging.DEBUG, "call", f"call {line}", **fields)
