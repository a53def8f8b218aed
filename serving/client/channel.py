"""Connections to the service: load balancing, retries, keepalive, and replacement when certificates are renewed."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from ..pb.digits.v1 import digit_service_pb2 as pb
from ..pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from .credentials import TLSCredentials
from .pem import CredentialsError

log = logging.getLogger(__name__)

# Each call goes to the next address that answers. gRPC's default policy sends all calls to one address.
BALANCED: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}

# Only these methods are safe to repeat; a repeated ReportTruth could count twice. Only UNAVAILABLE is retried: retries after
# RESOURCE_EXHAUSTED would add load to a server that has too much. Source: gRFC A6, client retries.
_RETRIED = ("Recognize", "RecognizeBatch", "ReadField")
SERVICE_CONFIG = {
    **BALANCED,
    "methodConfig": [
        {
            "name": [
                {"service": pb.DESCRIPTOR.services_by_name["DigitService"].full_name, "method": name} for name in _RETRIED
            ],
            "retryPolicy": {
                "maxAttempts": 5,  # gRPC's limit; with these pauses, five attempts take up to a second
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # During an outage, with hundreds of failures and few answers, gRPC stops retrying.
    "retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.1},
}

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", -1),  # the server limits the images per call, and so the size of an answer
    # Workers of a server share its load by connections, so each client opens its own; gRPC would share one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # A rollout may replace all servers within half a minute; by default gRPC resolves a name only that often.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 5000),  # default: two minutes after a long outage
    # A machine that died closes no connection. Without keepalive, its share of the calls would fail for 15 minutes.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # default: a minute; gRPC waits for the longer of the two timeouts
]

_POLL_SECONDS = 1.0  # between two looks at the certificate files


class _Connection:
    """A channel with its stub, and the number of its calls in flight."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None):
        if credentials is None:
            self._channel = grpc.insecure_channel(address, _OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, credentials, _OPTIONS)
        self.stub = DigitServiceStub(self._channel)
        self.calls = 0

    def close(self) -> None:
        self._channel.close()


class Connections:
    """The current connection, and older ones whose calls have not ended yet.

    gRPC has no way to give an open channel new certificates. When the files of TLSCredentials change, the next call opens a
    new channel. Calls in flight finish on the old channel, which is closed after the last of them.
    """

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None):
        """Prepares a channel, which connects at the first call."""
        self._address = address
        self._credentials = credentials
        self._current = _Connection(address, credentials)
        self._replaced: set[_Connection] = set()
        self._polled = time.monotonic()
        self._warned = ""  # the latest error of changed files, once logged
        self._closed = False
        self._lock = threading.Lock()

    @contextmanager
    def stub(self) -> Iterator[DigitServiceStub]:
        """Yields the stub for one call; its connection stays open for the duration of the block.

        Raises:
            ValueError: `close` was called.
        """
        with self._lock:
            if self._closed:
                raise ValueError("the client is closed, create a new DigitClient; a with statement closes it at its end")
            self._renew()
            connection = self._current
            connection.calls += 1
        try:
            yield connection.stub
        finally:
            with self._lock:
                connection.calls -= 1
                self._close_idle()

    def close(self) -> None:
        """Closes all connections. Calls in flight end with CANCELLED."""
        with self._lock:
            self._closed = True
            for connection in (self._current, *self._replaced):
                connection.close()
            self._replaced.clear()

    def _renew(self) -> None:
        """Replaces the connection if the certificate files changed. Files that can't be used leave it as it is."""
        if not isinstance(self._credentials, TLSCredentials) or time.monotonic() - self._polled < _POLL_SECONDS:
            return
        self._polled = time.monotonic()
        try:
            renewed = self._credentials.renewed()
        except CredentialsError as error:
            if self._warned != str(error):
                log.warning("the changed certificate files can't be used, the previous ones stay in use: %s", error)
            self._warned = str(error)
            return
        if renewed is not None:
            self._replaced.add(self._current)
            self._credentials, self._current = renewed, _Connection(self._address, renewed)
            self._close_idle()

    def _close_idle(self) -> None:
        for connection in [one for one in self._replaced if not one.calls]:
            self._replaced.remove(connection)
            connection.close()
