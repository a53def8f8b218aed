"""grpc.health.v1, which any caller may use, also where the server asks for tokens: load balancers have none.

The servicer of grpc_health has no limit of watches and waits for every watcher before it reports the next change: one
stalled watcher would keep the server from stopping. So this module has its own.
"""

import asyncio
from collections.abc import AsyncIterator

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from serving.call import Call
from serving.errors import InvalidRequest, UnknownService
from serving.transport.routes import Handler, Streaming, Unary, Write
from serving.transport.shares import Places

NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_MAX_BYTES = 1 << 16  # of a request, which holds the name of a service
_MAX_WATCHES = 100  # open at once: each takes memory for as long as its caller likes


class Health:
    """Health by service name. Check is always answered; Watch up to a limit of open watches,
    above which the caller with most of them gives way.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()  # replaced at each change
        self._watches = Places(_MAX_WATCHES, f"{_MAX_WATCHES} watches are open, which is the limit; call Check instead")

    def handlers(self) -> dict[str, Handler]:
        """Returns the handlers of the service, by path."""
        return {
            f"/{NAME}/Check": Unary(self._check, max_bytes=_MAX_BYTES),
            f"/{NAME}/Watch": Streaming(self._watch, endless=True, max_bytes=_MAX_BYTES),
        }

    def set(self, service: str, status: int) -> None:
        """Sets the status of a service, a HealthCheckResponse.ServingStatus, and notifies the watchers."""
        self._statuses[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def _check(self, encoded: bytes, call: Call) -> bytes:
        """Returns the status of a service."""
        status = self._statuses.get(_parse(encoded))
        if status is None:
            raise UnknownService("there is no such service here")
        return _encode(status)

    async def _watch(self, requests: AsyncIterator[bytes], write: Write, call: Call) -> None:
        """Sends the status of a service now and after each change, until the caller cancels."""
        with self._watches.take(call.source):
            service = _parse(await anext(requests, b""))
            sent = None
            while True:
                changed = self._changed
                status = self._statuses.get(service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
                if status != sent:
                    await write(_encode(status))
                    sent = status
                await changed.wait()


def _parse(encoded: bytes) -> str:
    """Returns the name of the service that a HealthCheckRequest asks for."""
    try:
        return health_pb2.HealthCheckRequest.FromString(encoded).service
    except DecodeError:
        raise InvalidRequest("the request is not a grpc.health.v1.HealthCheckRequest message") from None


def _encode(status: int) -> bytes:
    return health_pb2.HealthCheckResponse(status=status).SerializeToString()
