"""The errors of calls that failed, with the time to wait or the proxy in the way."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from .proxy import describe_proxy

_RETRY_AFTER = "grpc-retry-pushback-ms"

# What gRPC writes where it has no connection. An answer of the server has no other mark: its metadata may be empty, too.
_NO_CONNECTION = re.compile("; last error: |^errors resolving |^DNS resolution failed")


class _FailedCall(grpc.RpcError, grpc.Call):
    """The error of a call, with what this client knows besides."""

    def __init__(self, error: Any, details: str, hint: str):
        """Wraps the error that gRPC raised, which is also a grpc.Call."""
        self._error = error
        self._details = details
        super().__init__(f"{error.code().name}: {details}{hint}")

    def code(self) -> Any:
        """Returns the status code."""
        return self._error.code()

    def details(self) -> str:
        """Returns the reason."""
        return self._details

    def initial_metadata(self) -> Any:
        """Returns the metadata that the server started its answer with."""
        return self._error.initial_metadata()

    def trailing_metadata(self) -> Any:
        """Returns the metadata that the server ended the call with."""
        return self._error.trailing_metadata()

    def debug_error_string(self) -> str:
        """Returns gRPC's own description of the error."""
        return str(self._error.debug_error_string())

    def is_active(self) -> bool:
        """Returns False, because the call has ended."""
        return False

    def time_remaining(self) -> Any:
        """Returns None, because the call has ended."""
        return None

    def cancel(self) -> bool:
        """Returns False: a call that has ended can't be cancelled."""
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Returns False: the call has ended, so the callback never runs."""
        return False


class ResourceExhausted(_FailedCall):
    """The server refused the call, because its queue is full or the caller exceeds a rate limit. It did no work.

    Attributes:
        retry_after: seconds to wait before a retry. None if the server gave no time: too many streams are open, or the
            message is too large, and a retry fails again.
    """

    def __init__(self, error: Any):
        """Wraps the error that gRPC raised, which is also a grpc.Call."""
        self.retry_after = _retry_after(error.trailing_metadata() or ())
        hint = "" if self.retry_after is None else f"; retry after {self.retry_after:g} seconds"
        super().__init__(error, str(error.details()), hint)


class ProxyUnavailable(_FailedCall):
    """The server can't be reached, and the environment sends the connection through a proxy, which `details` names."""

    def __init__(self, error: Any, proxy: str):
        """Wraps the error that gRPC raised, which is also a grpc.Call."""
        super().__init__(error, f"{error.details()}; {proxy}", "")


def refine(error: grpc.RpcError, address: str) -> grpc.RpcError:
    """Returns the error of a call to `address` with what explains it better, or unchanged."""
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceExhausted(error)
    unreachable = error.code() is grpc.StatusCode.UNAVAILABLE and _NO_CONNECTION.search(error.details() or "")
    if unreachable and (proxy := describe_proxy(address)):
        return ProxyUnavailable(error, proxy)
    return error


def _retry_after(metadata: Iterable[tuple[str, str | bytes]]) -> float | None:
    """Seconds to wait. Source of the metadata, and of "negative means no retry": gRFC A6, client retries."""
    for key, value in metadata:
        if key == _RETRY_AFTER and str(value).isdigit():
            return int(value) / 1000
    return None
