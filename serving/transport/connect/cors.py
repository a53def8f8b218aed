"""Cross-origin resource sharing: the web pages whose scripts may call. Source: the Fetch standard of WHATWG."""

from collections.abc import Iterable

from serving.transport.http2_front.engine import Headers
from serving.transport.http2_front.head import Head

_ASKED = b"access-control-request-method"  # names the method that a page wants to use, in a preflight
_SENT = b"content-type, authorization, connect-protocol-version, connect-timeout-ms, grpc-timeout, x-grpc-web, x-user-agent"
_SHOWN = b"grpc-status, grpc-message, grpc-retry-pushback-ms, retry-after"
_MAX_AGE = b"7200"  # seconds for which a browser may remember a preflight, the most that Chromium takes


class Cors:
    """Answers the questions of browsers about web pages of other origins."""

    def __init__(self, origins: Iterable[str]):
        """Allows these origins, such as "https://desk.example"."""
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, head: Head) -> Headers:
        """Returns the headers that let the calling page see the answer; none for a page that may not."""
        origin = head.fields.get(b"origin")
        if origin not in self._origins:
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _SHOWN),
            (b"vary", b"origin"),
        ]

    def preflight(self, head: Head) -> Headers | None:
        """Returns the headers that answer a preflight; None if the request is no preflight of a page that may call."""
        allowed = self.headers(head)
        if not allowed or _ASKED not in head.fields:
            return None
        return [
            (b":status", b"204"),
            *allowed,
            (b"access-control-allow-methods", b"POST"),
            (b"access-control-allow-headers", _SENT),
            (b"access-control-max-age", _MAX_AGE),
        ]
