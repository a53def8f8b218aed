"""Calls to inference.GRPCInferenceService of a server in this process, each with a timeout."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.pb.inference import open_inference_pb2 as pb
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serving.process.server import Server
from tests.support.calls import TIMEOUT


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[GRPCInferenceServiceStub]:
    """Opens a channel to the server for the time of the block."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield GRPCInferenceServiceStub(channel)


def image_request(images: NDArray[np.uint8], *outputs: str, raw: bool = True, **fields: Any) -> pb.ModelInferRequest:
    """Builds a request with images, (n, 28, 28) uint8 unless a test wants another shape.

    Args:
        images: the tensor `images`.
        outputs: names of the outputs to request; without any, the request names no outputs.
        raw: True for raw bytes, False for typed contents.
        fields: other fields of the request.
    """
    request = pb.ModelInferRequest(**fields)
    tensor = request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    if raw:
        request.raw_input_contents.append(images.tobytes())
    else:
        tensor.contents.uint_contents.extend(images.ravel().tolist())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def crop_request(files: list[bytes], *, raw: bool) -> pb.ModelInferRequest:
    """Builds a request with crops, raw or typed."""
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="crops", datatype="BYTES", shape=[len(files)])
    if raw:
        request.raw_input_contents.append(b"".join(len(file).to_bytes(4, "little") + file for file in files))
    else:
        tensor.contents.bytes_contents.extend(files)
    return request


async def infer(stub: GRPCInferenceServiceStub, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    answer: pb.ModelInferResponse = await stub.ModelInfer(request, timeout=TIMEOUT)
    return answer


def assert_close(found: Any, expected: NDArray[np.float32]) -> None:
    """Compares outputs of the model, which differ in the last digits between batches of different sizes."""
    np.testing.assert_allclose(np.array(found).reshape(expected.shape), expected, atol=1e-4, rtol=1e-4)
