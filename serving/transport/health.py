"""grpc.health.v1, which stays open to everybody where tokens are asked for: load balancers have none.

It takes the place of grpc_health's own servicer, which takes any number of watches, and tells none of a change until all
have taken what they were told before: a stranger who takes nothing would keep the server from ending.
"""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Context = grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]

_MAX_WATCHES = 100  # open at once: each is memory, and lasts as long as its caller likes


class Health(health_pb2_grpc.HealthServicer):
    """Health by service name. A Check is always answered; watches are, up to a number."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()  # another one after each change
        self._watches = 0

    def set(self, service: str, status: int) -> None:
        """Says from now on how a service is: a HealthCheckResponse.ServingStatus."""
        self._statuses[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Tells how a service is."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802 - likewise
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        """Tells how a service is, now and whenever that changes, until the caller has heard enough."""
        if self._watches >= _MAX_WATCHES:
            message = f"{_MAX_WATCHES} watches are open, and more are not taken; call Check"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        self._watches += 1
        told = None
        try:
            while True:
                changed = self._changed
                status = self._statuses.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
                if status != told:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                    told = status
                await changed.wait()
        finally:
            self._watches -= 1
