"""What a request may name: short texts, few parameters, and a model where the absence of a name would be a slip."""

import json
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from serving.api import digits, open_inference
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as oip
from serving.process.server import Server
from tests.support.calls import TIMEOUT, refused
from tests.support.http2_client import http2_client
from tests.support.metrics import value
from tests.support.servers import StartServer

CODE = grpc.StatusCode
LONG, LONGEST = "\x1b" * 256, "x" * 255
IMAGE = bytes(784)


def infer(**fields: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(raw_input_contents=[IMAGE], **fields)
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28])
    return request


def infer_with_key(key: str) -> oip.ModelInferRequest:
    request = infer()
    request.parameters["key"].string_param = key
    return request


requests: Any = pb  # mypy can't check fields that are named by a variable

REQUESTS = [
    *[(digits.NAME, "Recognize", requests.RecognizeRequest(image=IMAGE, **{name: LONG}), name) for name in ("model", "key")],
    *[
        (digits.NAME, "RecognizeBatch", requests.RecognizeBatchRequest(images=IMAGE, **{n: LONG}), n)
        for n in ("model", "key")
    ],
    *[
        (digits.NAME, "ReadField", requests.ReadFieldRequest(images=IMAGE, **{n: LONG}), n)
        for n in ("model", "key", "lexicon")
    ],
    *[(open_inference.NAME, "ModelInfer", infer(**{n: LONG}), n) for n in ("model_name", "model_version", "id")],
    (open_inference.NAME, "ModelInfer", infer_with_key(LONG), "parameter key"),
    *[(open_inference.NAME, "ModelReady", oip.ModelReadyRequest(**{n: LONG}), n) for n in ("name", "version")],
    *[(open_inference.NAME, "ModelMetadata", oip.ModelMetadataRequest(**{n: LONG}), n) for n in ("name", "version")],
    *[(open_inference.NAME, "ModelConfig", oip.ModelConfigRequest(**{n: LONG}), n) for n in ("name", "version")],
    *[(open_inference.NAME, "ModelStatistics", oip.ModelStatisticsRequest(**{n: LONG}), n) for n in ("name", "version")],
    (open_inference.NAME, "RepositoryIndex", oip.RepositoryIndexRequest(repository_name=LONG), "repository_name"),
    (open_inference.NAME, "RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name=LONG), "model_name"),
    (open_inference.NAME, "RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name=LONG), "model_name"),
]


async def refusal(server: Server, path: str, encoded: bytes) -> Any:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call: Any = channel.unary_unary(path)
        return await refused(call(encoded, timeout=TIMEOUT))


async def test_a_long_text_is_refused_unrepeated_by_every_method(start_server: StartServer) -> None:
    server = await start_server(model_control=True)
    for service, method, request, field in REQUESTS:
        error = await refusal(server, f"/{service}/{method}", request.SerializeToString())
        expected = (CODE.INVALID_ARGUMENT, f"{field} has 256 characters, expected 255 at most")
        assert (error.code(), error.details()) == expected, (method, field)


async def test_a_text_of_the_greatest_length_is_looked_up(server: Server) -> None:
    for request in (pb.RecognizeRequest(image=IMAGE, model=LONGEST), pb.RecognizeRequest(crop=IMAGE, model=LONGEST)):
        error = await refusal(server, f"/{digits.NAME}/Recognize", request.SerializeToString())
        assert (error.code(), error.details()) == (CODE.NOT_FOUND, f"there is no model '{LONGEST}'")


@pytest.mark.parametrize("wide", [True, False], ids=["of the request", "of the tensor"])
async def test_a_request_of_many_parameters_is_refused(server: Server, *, wide: bool) -> None:
    request = infer()
    for number in range(65):
        (request if wide else request.inputs[0]).parameters[str(number)].bool_param = True
    error = await refusal(server, f"/{open_inference.NAME}/ModelInfer", request.SerializeToString())
    assert (error.code(), error.details()) == (CODE.INVALID_ARGUMENT, "there are 65 parameters, expected 64 at most")


@pytest.mark.parametrize("size", [256, 1_000_000])
async def test_a_stream_answers_a_long_text_with_a_short_error(server: Server, size: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stream: Any = channel.stream_stream(f"/{digits.NAME}/RecognizeStream")(timeout=TIMEOUT)
        request = pb.RecognizeStreamRequest(id=7, request=pb.RecognizeRequest(image=IMAGE, model="\x01" * size))
        await stream.write(request.SerializeToString())
        answer = pb.RecognizeStreamResponse.FromString(await stream.read())
        assert (answer.id, answer.error.code) == (7, CODE.INVALID_ARGUMENT.value[0])
        assert answer.error.message == f"model has {size} characters, expected 255 at most"

        infers: Any = channel.stream_stream(f"/{open_inference.NAME}/ModelStreamInfer")(timeout=TIMEOUT)
        await infers.write(infer(id="\x01" * size).SerializeToString())
        refused_infer = oip.ModelStreamInferResponse.FromString(await infers.read())
        assert refused_infer.error_message == f"id has {size} characters, expected 255 at most"
        assert not refused_infer.infer_response.id


@pytest.mark.parametrize("verb", ["Load", "Unload"])
async def test_load_and_unload_without_a_name_change_nothing(start_server: StartServer, verb: str) -> None:
    server = await start_server(model_control=True)
    error = await refusal(server, f"/{open_inference.NAME}/RepositoryModel{verb}", b"")
    assert (error.code(), error.details()) == (CODE.INVALID_ARGUMENT, "model_name is empty, expected the name of a model")
    assert not server.unready()


SMALL: list[tuple[str, type[Message]]] = [
    ("ServerLive", oip.ServerLiveRequest),
    ("ModelReady", oip.ModelReadyRequest),
    ("RepositoryIndex", oip.RepositoryIndexRequest),
    ("RepositoryModelUnload", oip.RepositoryModelUnloadRequest),
]


@pytest.mark.parametrize("name", [name for name, _ in SMALL])
async def test_a_method_without_images_takes_no_large_message(start_server: StartServer, name: str) -> None:
    server = await start_server(model_control=True)
    unknown_fields = b"\x78\x01" * 40_000
    error = await refusal(server, f"/{open_inference.NAME}/{name}", unknown_fields)
    assert error.code() is CODE.RESOURCE_EXHAUSTED
    assert error.details() == "the message is 80000 bytes, this method takes 65536"
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="too_large") == 1
    assert value(server.metrics.registry, "digits_requests_total", method=name, code="RESOURCE_EXHAUSTED") == 1


@pytest.mark.parametrize("front", ["http2"], indirect=True)
async def test_json_is_bounded_like_protobuf(server: Server) -> None:
    async with http2_client(server.grpc_port) as client:
        body = json.dumps({"model": LONG, "image": "AAAA"}).encode()
        response = await client.call(f"/{digits.NAME}/Recognize", body, content_type="application/json")
    assert response.headers[":status"] == "400"
    assert json.loads(response.body)["message"] == "model has 256 characters, expected 255 at most"
