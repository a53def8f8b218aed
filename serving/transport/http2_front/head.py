"""The headers of a call: path, deadline, metadata."""

import base64
import binascii
import re

from serving.api.side_thread import LONG_BYTES
from serving.errors import InvalidRequest
from serving.security.tokens import Metadata

RawHeaders = tuple[tuple[bytes, bytes], ...]

_FIELD_OVERHEAD = 32  # of each header in the size that SETTINGS_MAX_HEADER_LIST_SIZE limits. Source: RFC 9113, 6.5.2.

_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

_MILLISECONDS = re.compile(rb"\d{1,10}")

# Headers of the protocols themselves, which are no metadata of the caller. Source: gRPC over HTTP/2.
_RESERVED = frozenset((b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"))


class Head:
    """The headers of one call.

    Attributes:
        headers: all of them, in order.
        fields: their values by name; of a repeated header the last.
        path: the path, such as "/digits.v1.DigitService/Recognize".
        method: the method of HTTP.
        content_type: the media type of the request, in lower case and without parameters.
        read_at_once: bytes of a body that is read on the event loop, however it is encoded; 0 where the headers name a
            compression.
        size: the size of the headers as HTTP/2 counts it, in bytes.
    """

    __slots__ = ("content_type", "fields", "headers", "method", "path", "read_at_once", "size")

    def __init__(self, headers: RawHeaders):
        self.headers = headers
        self.fields = dict(headers)
        self.path = self.fields.get(b":path", b"").decode("ascii", "replace")
        self.method = self.fields.get(b":method", b"")
        self.content_type = self.fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        # Of gRPC and gRPC-Web, and of Connect. Each protocol obeys its own header only, and a caller may send both.
        get = self.fields.get
        plain = get(b"grpc-encoding", b"identity") == get(b"content-encoding", b"identity") == b"identity"
        self.read_at_once = LONG_BYTES if plain else 0
        self.size = sum(len(name) + len(value) + _FIELD_OVERHEAD for name, value in headers)

    @property
    def is_compressed(self) -> bool:
        """True where the headers name a compression."""
        return not self.read_at_once

    def grpc_timeout(self) -> float | None:
        """Returns the seconds until the deadline of a gRPC call; None without one. Raises InvalidRequest."""
        value = self.fields.get(b"grpc-timeout")
        if value is None:
            return None
        match = _TIMEOUT.fullmatch(value)
        if not match:
            raise InvalidRequest("grpc-timeout is not 1 to 8 digits and a unit of H, M, S, m, u or n")
        return int(match[1]) * _SECONDS[match[2]]

    def connect_timeout(self) -> float | None:
        """Returns the seconds until the deadline of a Connect call; None without one. Raises InvalidRequest."""
        value = self.fields.get(b"connect-timeout-ms")
        if value is None:
            return None
        if not _MILLISECONDS.fullmatch(value):
            raise InvalidRequest("connect-timeout-ms is not 1 to 10 digits")
        return int(value) / 1000

    def metadata(self) -> Metadata:
        """Returns the caller's metadata. Values of names that end in -bin are decoded; those that are no base64 left out."""
        metadata: list[tuple[str, str | bytes]] = []
        for name, value in self.headers:
            if name[:1] == b":" or name in _RESERVED:
                continue
            key = name.decode("ascii", "replace")
            if name.endswith(b"-bin"):
                metadata += ((key, content) for part in value.split(b",") if (content := _base64(part)) is not None)
            else:
                metadata.append((key, value.decode("utf-8", "replace")))
        return metadata


def _base64(text: bytes) -> bytes | None:
    """Decodes base64 with or without padding; None for anything else."""
    text = text.strip()
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return None
