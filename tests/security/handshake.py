"""Health calls that each make a handshake of their own."""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.calls import TIMEOUT

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
"""Channel options that keep gRPC from sharing a connection between channels to one address."""


async def health_code(port: int, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """Calls Health.Check on a new connection, with TLS if there are credentials; returns the status code."""
    address = f"127.0.0.1:{port}"
    channel = (
        grpc.aio.secure_channel(address, credentials, OWN_CONNECTION)
        if credentials
        else grpc.aio.insecure_channel(address, OWN_CONNECTION)
    )
    async with channel:
        return await check_health(channel)


async def check_health(channel: grpc.aio.Channel) -> grpc.StatusCode:
    """Calls Health.Check on an open channel; returns the status code."""
    try:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK
