"""Priorities in both protocols and on both fronts."""

from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.inference.classifier import Classifier
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as inference
from serving.process.server import Server
from tests.support import digit_calls, infer_calls
from tests.support.calls import TIMEOUT, refused
from tests.support.infer_calls import crop_request, image_request
from tests.support.metrics import value
from tests.support.servers import StartServer

Images = NDArray[np.uint8]
CODE = grpc.StatusCode


@pytest.fixture(params=["http2", "grpcio"])
async def server(request: pytest.FixtureRequest, start_server: StartServer, model: Classifier) -> Server:
    return await start_server(model, front=request.param)


def batch_images(server: Server) -> float:
    return value(server.metrics.registry, "digits_batch_images_total")


async def stream(stub: Any, *requests: Any) -> list[Any]:
    return [answer async for answer in stub(iter(requests), timeout=TIMEOUT)]


async def test_each_method_of_the_native_protocol_takes_a_priority(
    server: Server, images: Images, crops: list[bytes]
) -> None:
    one, many = images[0].tobytes(), images[:3].tobytes()
    async with digit_calls.connect(server) as stub:
        for priority, counted in ((pb.PRIORITY_BATCH, 9), (pb.PRIORITY_LIVE, 9), (pb.PRIORITY_UNSPECIFIED, 9)):
            for request in (
                pb.RecognizeRequest(image=one, priority=priority),
                pb.RecognizeRequest(crop=crops[0], priority=priority),
            ):
                assert len((await stub.Recognize(request, timeout=TIMEOUT)).probabilities) == 10
                (answer,) = await stream(stub.RecognizeStream, pb.RecognizeStreamRequest(id=7, request=request))
                assert (answer.id, answer.WhichOneof("outcome")) == (7, "answer")
            assert len((await digit_calls.recognize_batch(stub, many, priority=priority)).digits) == 3
            assert len((await digit_calls.read_field(stub, crops=crops[:2], priority=priority)).value) == 2
            assert batch_images(server) == counted


@pytest.mark.parametrize("priority", [3, -1])
async def test_an_unknown_priority_of_the_native_protocol_is_refused(server: Server, images: Images, priority: Any) -> None:
    expected = f"priority is {priority}, expected one of 0 (PRIORITY_UNSPECIFIED), 1 (PRIORITY_LIVE), 2 (PRIORITY_BATCH)"
    request = pb.RecognizeRequest(image=images[0].tobytes(), priority=priority)
    async with digit_calls.connect(server) as stub:
        for call in (
            stub.Recognize(request, timeout=TIMEOUT),
            digit_calls.recognize_batch(stub, images[:3].tobytes(), priority=priority),
            digit_calls.read_field(stub, images[:3].tobytes(), priority=priority),
        ):
            error = await refused(call)
            assert (error.code(), error.details()) == (CODE.INVALID_ARGUMENT, expected)
        (answer,) = await stream(stub.RecognizeStream, pb.RecognizeStreamRequest(id=7, request=request))
        assert (answer.error.code, answer.error.message) == (CODE.INVALID_ARGUMENT.value[0], expected)


BATCH = [inference.InferParameter(string_param="batch"), inference.InferParameter(uint64_param=2)]
LIVE = [
    inference.InferParameter(string_param="live"),
    inference.InferParameter(uint64_param=1),
    inference.InferParameter(int64_param=0),
]


@pytest.mark.parametrize(("parameter", "counted"), [*[(one, 6) for one in BATCH], *[(one, 0) for one in LIVE]])
async def test_the_tensor_protocol_takes_a_priority_by_name_or_level(
    server: Server, images: Images, crops: list[bytes], parameter: inference.InferParameter, counted: int
) -> None:
    crop = crop_request(crops[:1], raw=True)
    crop.parameters["priority"].CopyFrom(parameter)
    requests = [image_request(images[:count], parameters={"priority": parameter}) for count in (1, 1, 3)]
    async with infer_calls.connect(server) as stub:
        for request in (*requests[:2], crop):
            assert (await infer_calls.infer(stub, request)).raw_output_contents
        (answer,) = await stream(stub.ModelStreamInfer, requests[2])
        assert not answer.error_message
    assert batch_images(server) == counted


@pytest.mark.parametrize(
    "parameter",
    [
        inference.InferParameter(string_param="urgent"),
        inference.InferParameter(uint64_param=3),
        inference.InferParameter(int64_param=-1),
        inference.InferParameter(bool_param=True),
        inference.InferParameter(double_param=1.0),
        inference.InferParameter(),
    ],
)
async def test_an_unknown_priority_of_the_tensor_protocol_is_refused(
    server: Server, images: Images, parameter: inference.InferParameter
) -> None:
    async with infer_calls.connect(server) as stub:
        for count in (1, 2):
            request = image_request(images[:count], parameters={"priority": parameter})
            error = await refused(infer_calls.infer(stub, request))
            assert error.code() is CODE.INVALID_ARGUMENT
            assert "expected live or batch, as string_param; or 0 or 1 (live) or 2 (batch)" in (error.details() or "")
