from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.api import digits, open_inference
from serving.process.server import Server
from tests.support.calls import TIMEOUT, refused
from tests.support.servers import StartServer

PATHS = [f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")]


def method(channel: grpc.aio.Channel, path: str) -> Any:
    return channel.stream_stream(
        path,
        request_serializer=lambda request: request if isinstance(request, bytes) else request.SerializeToString(),
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )


@pytest.mark.parametrize("path", PATHS)
async def test_both_versions_list_the_services_and_describe_each(server: Server, path: str) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = method(channel, path)(timeout=TIMEOUT)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {service.name for service in (await call.read()).list_services_response.service}
        assert names == {digits.NAME, open_inference.NAME, "grpc.health.v1.Health", reflection.SERVICE_NAME}
        for name in sorted(names):
            await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
            assert (await call.read()).file_descriptor_response.file_descriptor_proto, f"{name} is not described"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("path", PATHS)
async def test_bytes_that_are_no_request_end_the_stream(server: Server, path: str) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        error = await refused(method(channel, path)(iter([b"\xff"]), timeout=TIMEOUT).read())
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "the request is not a ServerReflectionRequest message"


@pytest.mark.parametrize("path", PATHS)
async def test_reflection_can_be_switched_off(start_server: StartServer, path: str) -> None:
    server = await start_server(reflection=False)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        assert (await refused(method(channel, path)(timeout=TIMEOUT).read())).code() is grpc.StatusCode.UNIMPLEMENTED
