"""The bounds on what callers may hold, which apply before a caller is authenticated."""

from dataclasses import dataclass
from typing import Self

from serving.settings import Settings

# Bytes of a stream's answers that may wait for its caller before its handler has to wait.
STREAM_ANSWER_BYTES = 1 << 18

# Bytes of answers that a connection may leave untaken. Beyond it, its new calls are refused.
CONNECTION_ANSWER_BYTES = 8 << 20

# Cancelled calls of one network, as a multiple of those of one connection: a proxy has several connections.
NETWORK_RESETS = 4

REACHED = (
    "connections",
    "connections_per_peer",
    "calls",
    "header_bytes",
    "request_bytes",
    "answer_bytes",
    "untaken_answers",
    "resets",
    "preface_time",
    "message_time",
    "answer_time",
    "idle_time",
    "keepalive",
    "handshake",
    "handshakes_per_second",
    "http2",
)
"""Labels of the metric digits_limits_reached_total; its description and serving/README.md explain them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one worker. The settings of the same names describe the consequences.

    Attributes:
        message_bytes: size of a request message, also once it is decompressed.
        header_bytes: size of a call's headers, decompressed, by the count of RFC 9113.
        connections: open connections.
        connections_per_peer: open connections from one address, or from one IPv6 network of 64 bits.
        calls: open calls.
        calls_per_connection: open calls on one connection.
        request_bytes: bytes of messages that have not arrived completely, or that no handler has taken.
        answer_bytes: bytes of answers that wait for their callers.
        resets_per_second: streams that a client cancels, on one connection; on all of its network, NETWORK_RESETS times as
            many.
        preface_seconds: time from a connection to the client's first frame, TLS handshake included.
        message_seconds: time from a call's headers to the end of its message.
        answer_seconds: time in which a client that has answers waiting takes none.
        idle_seconds: time of a connection without a call.
        keepalive_seconds: silence before the server pings, and then before it gives up.
        age_seconds: age at which a connection closes; 0 for none.
        age_grace_seconds: time for the calls of a connection past its age.
    """

    message_bytes: int
    header_bytes: int
    connections: int
    connections_per_peer: int
    calls: int
    calls_per_connection: int
    request_bytes: int
    answer_bytes: int
    resets_per_second: int
    preface_seconds: float
    message_seconds: float
    answer_seconds: float
    idle_seconds: float
    keepalive_seconds: float
    age_seconds: float
    age_grace_seconds: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Takes the limits from the operator's settings."""
        return cls(
            message_bytes=settings.max_message_bytes,
            header_bytes=settings.max_header_bytes,
            connections=settings.max_connections,
            connections_per_peer=settings.max_connections_per_peer,
            calls=settings.max_open_calls,
            calls_per_connection=settings.max_calls_per_connection,
            request_bytes=settings.max_request_buffer_bytes,
            answer_bytes=settings.max_answer_buffer_bytes,
            resets_per_second=settings.max_resets_per_second,
            preface_seconds=settings.preface_seconds,
            message_seconds=settings.message_seconds,
            answer_seconds=settings.answer_seconds,
            idle_seconds=settings.idle_seconds,
            keepalive_seconds=settings.keepalive_seconds,
            age_seconds=settings.max_connection_age_seconds,
            age_grace_seconds=settings.max_connection_age_grace_seconds,
        )


class TokenBucket:
    """Counts events of one second: `rate` of them may come at once, and `rate` more each second."""

    def __init__(self, rate: float, now: float):
        """Starts full. Times are on any clock, in seconds."""
        self._rate = rate
        self._left = rate
        self._filled = now

    def take(self, now: float) -> bool:
        """Counts one event; returns False for one too many."""
        self._left = min(self._rate, self._left + (now - self._filled) * self._rate) - 1
        self._filled = now
        return self._left >= 0

    def full(self, now: float) -> bool:
        """Returns True if a new bucket would be no fuller."""
        return self._left + (now - self._filled) * self._rate >= self._rate


class NetworkBuckets:
    """Counts events of one second by network."""

    def __init__(self, rate: float):
        """Starts without any network.

        Args:
            rate: events of one network that may come at once, and in each second.
        """
        self._rate = rate
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, network: str, now: float) -> bool:
        """Counts one event; returns False for one too many of its network."""
        if network not in self._buckets:
            self._buckets[network] = TokenBucket(self._rate, now)
        return self._buckets[network].take(now)

    def sweep(self, now: float) -> None:
        """Forgets the networks whose events no longer matter."""
        self._buckets = {network: bucket for network, bucket in self._buckets.items() if not bucket.full(now)}
