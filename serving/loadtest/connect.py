"""A service under test that is called by the Connect protocol: unary calls in application/proto over HTTP/2.

Source: the specification "Connect Protocol", connectrpc.com.
"""

import asyncio
import json
import ssl
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from serving.loadtest.calls import KINDS
from serving.loadtest.http2 import ConnectionLost, Headers, Http2Connection, Response
from serving.loadtest.plan import Plan
from serving.loadtest.target import Caller, Images, Outcome

_NAMES = {"canceled": "CANCELLED"}  # the protocol's spelling; the other codes are gRPC's in lower case


@dataclass(frozen=True)
class ConnectTarget:
    """A service under test that speaks the Connect protocol: on the port of the front http2.

    Attributes:
        address: host:port.
        tls_ca: PEM file with the CA of the server; None without TLS.
        tls_certificate: PEM file with the client's certificate; None without mutual TLS.
        tls_key: PEM file with the client's key; None without mutual TLS.
        token: bearer token; None without tokens.
    """

    address: str
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    token: str | None = None

    def request(self, plan: Plan, images: Images) -> bytes:
        """Encodes a request of `images`."""
        return bytes(KINDS[plan.rpc].request(images, plan).SerializeToString())

    def callers(self, plan: Plan) -> list[Caller]:
        """Returns a caller for each connection of the plan."""
        tls = self._tls()
        return [ConnectCaller(self.address, plan, tls, self.token) for _ in range(plan.connections)]

    def _tls(self) -> ssl.SSLContext | None:
        if self.tls_ca is None:
            return None
        context = ssl.create_default_context(cafile=str(self.tls_ca))
        context.set_alpn_protocols(["h2"])
        if self.tls_certificate:
            context.load_cert_chain(self.tls_certificate, self.tls_key)
        return context


class ConnectCaller:
    """Sends calls over one connection, and opens a new one once the server ends it."""

    def __init__(self, address: str, plan: Plan, tls: ssl.SSLContext | None, token: str | None):
        self._kind, self._timeout, self._tls = KINDS[plan.rpc], plan.timeout_seconds, tls
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._headers: Headers = [
            (b":method", b"POST"),
            (b":scheme", b"https" if tls else b"http"),
            (b":authority", address.encode()),
            (b":path", self._kind.method.encode()),
            (b"content-type", b"application/proto"),
            (b"connect-protocol-version", b"1"),
            (b"connect-timeout-ms", b"%d" % max(1, round(plan.timeout_seconds * 1000))),
        ]
        if token is not None:
            self._headers.append((b"authorization", b"Bearer " + token.encode()))
        self._connection: Http2Connection | None = None
        self._connecting = asyncio.Lock()

    async def call(self, request: bytes) -> Outcome:
        """Sends the request and waits for the answer."""
        try:
            async with asyncio.timeout(self._timeout):
                connection = self._connection
                if connection is None or not connection.usable:
                    connection = await self._connected()
                response = await connection.request(self._headers, request)
        except TimeoutError:
            return Outcome("DEADLINE_EXCEEDED")
        except (ConnectionLost, OSError) as error:
            return Outcome("UNAVAILABLE", details=str(error))
        if response.status != 200:
            return _failed(response)
        try:
            return Outcome("OK", self._kind.digits(self._kind.response.FromString(bytes(response.body))))
        except (DecodeError, IndexError, ValueError):  # an answer without digits counts as wrong
            return Outcome("OK")

    async def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            self._connection.close()
            await self._connection.closed.wait()

    async def _connected(self) -> Http2Connection:
        async with self._connecting:
            if self._connection is None or not self._connection.usable:  # else another call has connected meanwhile
                loop = asyncio.get_running_loop()
                _, self._connection = await loop.create_connection(Http2Connection, self._host, self._port, ssl=self._tls)
            return self._connection


def _failed(response: Response) -> Outcome:
    """Returns the error of a response: JSON from the service; from another server on the way, only a status of HTTP."""
    try:
        error = json.loads(response.body)
        code = str(error["code"])
        return Outcome(_NAMES.get(code, code.upper()), details=str(error.get("message", "")))
    except (ValueError, KeyError, TypeError):
        return Outcome("UNKNOWN", details=f"HTTP status {response.status}")
