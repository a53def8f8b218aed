"""grpc.health.v1, which any caller may use, also where the server asks for tokens: load balancers have none.

It replaces the servicer of grpc_health, which has no limit of watches and waits for every watcher before it reports the
next change: one stalled watcher would keep the server from stopping.
"""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Context = grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]

_MAX_WATCHES = 100  # open at once: each takes memory for as long as its caller likes


class Health(health_pb2_grpc.HealthServicer):
    """Health by service name. Check is always answered; Watch up to a limit of open watches."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()  # replaced at each change
        self._watches = 0

    def set(self, service: str, status: int) -> None:
        """Sets the status of a service, a HealthCheckResponse.ServingStatus, and notifies the watchers."""
        self._statuses[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Returns the status of a service."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        """Sends the status of a service now and after each change, until the caller cancels."""
        if self._watches >= _MAX_WATCHES:
            message = f"{_MAX_WATCHES} watches are open, which is the limit; call Check instead"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        self._watches += 1
        sent = None
        try:
            while True:
                changed = self._changed
                status = self._statuses.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
                if status != sent:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                    sent = status
                await changed.wait()
        finally:
            self._watches -= 1
