import asyncio
import math

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.pb.inference import open_inference_pb2 as pb
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.support.calls import refused
from tests.support.infer_calls import connect, image_request, infer
from tests.support.metrics import value
from tests.support.models import GatedModel
from tests.support.servers import StartServer

Images = NDArray[np.uint8]

CODE = grpc.StatusCode


async def test_a_request_whose_timeout_passes_in_the_queue_is_never_run(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    async with connect(server) as stub:
        running = asyncio.ensure_future(infer(stub, image_request(images[:1])))
        await gated.run_starts()
        for timeout in (pb.InferParameter(int64_param=100_000), pb.InferParameter(uint64_param=100_000)):
            error = await refused(infer(stub, image_request(images[1:2], parameters={"timeout": timeout})))
            assert error.code() is CODE.DEADLINE_EXCEEDED
            assert error.details() == "the request's timeout passed before its answer was ready"
        assert value(server.metrics.registry, "digits_queue_length_images") == 0
        gated.open()
        await running
    assert len(gated.batches) == 1


@pytest.mark.parametrize("raw", [True, False])
async def test_a_long_timeout_and_unknown_parameters_have_no_effect(
    inference_stub: GRPCInferenceServiceStub, images: Images, raw: bool
) -> None:
    parameters = {
        "timeout": pb.InferParameter(uint64_param=2**64 - 1),
        "priority": pb.InferParameter(uint64_param=1),
        "mine": pb.InferParameter(bool_param=True),
    }
    assert await infer(inference_stub, image_request(images[:1], raw=raw, parameters=parameters))
    no_timeout = {"timeout": pb.InferParameter(int64_param=0)}
    assert await infer(inference_stub, image_request(images[:1], raw=raw, parameters=no_timeout))


async def test_a_request_of_a_sequence_is_refused_as_unsupported(
    inference_stub: GRPCInferenceServiceStub, images: Images
) -> None:
    parameters = {"sequence_id": pb.InferParameter(int64_param=7), "sequence_start": pb.InferParameter(bool_param=True)}
    error = await refused(infer(inference_stub, image_request(images[:1], parameters=parameters)))
    assert error.code() is CODE.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("name", "parameter", "expected"),
    [
        ("timeout", pb.InferParameter(int64_param=-1), "a number of microseconds"),
        ("timeout", pb.InferParameter(string_param="1"), "a number of microseconds"),
        ("timeout", pb.InferParameter(double_param=math.nan), "a number of microseconds"),
        ("timeout", pb.InferParameter(), "a number of microseconds"),
        ("key", pb.InferParameter(int64_param=1), "a string"),
        ("key", pb.InferParameter(), "a string"),
        ("target_error_rate", pb.InferParameter(string_param="0.01"), "a number"),
    ],
)
async def test_a_parameter_of_the_wrong_type_is_refused(
    inference_stub: GRPCInferenceServiceStub, images: Images, name: str, parameter: pb.InferParameter, expected: str
) -> None:
    error = await refused(infer(inference_stub, image_request(images[:1], parameters={name: parameter})))
    assert error.code() is CODE.INVALID_ARGUMENT
    assert (error.details() or "").startswith(f"parameter {name} is not {expected}, expected ")
