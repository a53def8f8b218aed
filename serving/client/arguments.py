"""Checks the arguments of the client's methods, so that a wrong one fails with its name and before the call."""

import math
from numbers import Real
from typing import Any

import grpc

from ..pb.digits.v1 import digit_service_pb2 as pb

_PRIORITIES = {"live": pb.PRIORITY_UNSPECIFIED, "batch": pb.PRIORITY_BATCH}  # servers before priorities know none


def check_address(address: Any) -> str:
    """Returns the address. Raises TypeError or ValueError."""
    checked = _text(address, "address")
    if not checked.strip():
        raise ValueError("address is empty, expected host:port or a name that gRPC resolves")
    return checked


def check_timeout(timeout_seconds: Any) -> float:
    """Returns the timeout, seconds. Raises TypeError or ValueError."""
    if not 0 < _number(timeout_seconds, "timeout_seconds") < math.inf:  # NaN fails too
        raise ValueError(f"timeout_seconds is {timeout_seconds}, expected a finite number of seconds above 0")
    return float(timeout_seconds)


def check_credentials(credentials: Any) -> grpc.ChannelCredentials | None:
    """Returns the credentials. Raises TypeError."""
    if credentials is not None and not isinstance(credentials, grpc.ChannelCredentials):
        raise TypeError(
            f"credentials has type {type(credentials).__name__}, expected the result of channel_credentials(ca_file), "
            "grpc.ChannelCredentials, or None for no TLS"
        )
    return credentials


def check_token(token: Any) -> str | None:
    """Returns the token without the whitespace around it, such as the newline at the end of a file.

    The messages never hold the token, which is a secret.

    Raises:
        TypeError: the token is not a str.
        ValueError: the token is not one line of printable ASCII.
    """
    if token is None:
        return None
    if not isinstance(token, str):
        hint = "; decode it: token.decode()" if isinstance(token, bytes) else ""
        raise TypeError(f"token has type {type(token).__name__}, expected str or None{hint}")
    stripped = token.strip()
    if not stripped:
        raise ValueError("token is empty, expected one line of printable ASCII, or None for no token")
    if not (stripped.isascii() and stripped.isprintable()):
        raise ValueError("token holds several lines or other characters, expected one line of printable ASCII")
    return stripped


def check_options(*, target_error_rate: Any, **names: Any) -> None:
    """Checks the options of a call: `model`, `key` and `lexicon`, and the error rate. The server checks their values.

    Raises:
        TypeError: a name is not a str, or the error rate is not a number.
    """
    for name, value in names.items():
        _text(value, name)
    _number(target_error_rate, "target_error_rate")


def check_priority(priority: Any) -> pb.Priority:
    """Returns the priority as requests carry it. Raises TypeError or ValueError."""
    if _text(priority, "priority") not in _PRIORITIES:
        raise ValueError(f"priority is {priority!r}, expected 'live' or 'batch'")
    return _PRIORITIES[priority]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} has type {type(value).__name__}, expected str")
    return value


def _number(value: Any, name: str) -> Any:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} has type {type(value).__name__}, expected a number")
    return value
