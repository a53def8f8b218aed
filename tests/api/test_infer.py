import asyncio

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.answers.recognition_id import RecognitionIds
from serving.inference.classifier import Classifier
from serving.pb.digits.v1.digit_service_pb2 import DECISION_REJECT_INVALID_IMAGE
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.pb.inference import open_inference_pb2 as pb
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.support import digit_calls
from tests.support.calls import TIMEOUT, refused
from tests.support.infer_calls import assert_close, connect, crop_request, image_request, infer
from tests.support.metrics import until
from tests.support.models import GatedModel
from tests.support.servers import StartServer

Images = NDArray[np.uint8]

CODE = grpc.StatusCode
BOTH = ("logits", "probabilities")


async def test_raw_images_are_answered_with_raw_outputs(
    inference_stub: GRPCInferenceServiceStub, model: Classifier, images: Images, outputs: NDArray[np.float32]
) -> None:
    answer = await infer(inference_stub, image_request(images[:50], *BOTH, model_name="digits", id="piece 7"))
    assert (answer.model_name, answer.model_version, answer.id) == ("digits", model.version, "piece 7")
    assert [(output.name, output.datatype, list(output.shape)) for output in answer.outputs] == [
        ("logits", "FP32", [50, 10]),
        ("probabilities", "FP32", [50, 10]),
    ]
    assert not any(output.HasField("contents") for output in answer.outputs)
    logits, probabilities = (np.frombuffer(values, "<f4") for values in answer.raw_output_contents)
    assert_close(logits, outputs[:50, :10])
    assert_close(probabilities, outputs[:50, 10:20])


async def test_typed_images_are_answered_with_typed_outputs(
    inference_stub: GRPCInferenceServiceStub, images: Images, outputs: NDArray[np.float32]
) -> None:
    answer = await infer(inference_stub, image_request(images[:50], *BOTH, raw=False))
    assert not answer.raw_output_contents
    logits, probabilities = (output.contents.fp32_contents for output in answer.outputs)
    assert_close(logits, outputs[:50, :10])
    assert_close(probabilities, outputs[:50, 10:20])


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("names", [["logits"], ["probabilities"], ["probabilities", "logits"]])
async def test_requested_outputs_are_returned_in_the_order_of_the_request(
    inference_stub: GRPCInferenceServiceStub, images: Images, outputs: NDArray[np.float32], names: list[str], raw: bool
) -> None:
    answer = await infer(inference_stub, image_request(images[:2], *names, raw=raw))
    assert [output.name for output in answer.outputs] == names
    expected = {"logits": outputs[:2, :10], "probabilities": outputs[:2, 10:20]}
    for index, name in enumerate(names):
        if raw:
            assert_close(np.frombuffer(answer.raw_output_contents[index], "<f4"), expected[name])
        else:
            assert_close(answer.outputs[index].contents.fp32_contents, expected[name])


async def test_the_largest_allowed_request_is_answered_and_a_larger_one_refused(start_server: StartServer) -> None:
    server = await start_server(max_images_per_request=2000)
    white = np.full((2000, 28, 28), 255, np.uint8)
    async with connect(server) as stub:
        for raw in (True, False):
            assert list((await infer(stub, image_request(white, "logits", raw=raw))).outputs[0].shape) == [2000, 10]
        error = await refused(infer(stub, image_request(np.concatenate([white, white[:1]]))))
        assert error.code() is CODE.INVALID_ARGUMENT
        assert error.details() == "images holds 2001 images, this server takes 2000 a call"


async def test_both_protocols_share_the_runs_of_a_model(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub, native = GRPCInferenceServiceStub(channel), DigitServiceStub(channel)
        first = asyncio.ensure_future(infer(stub, image_request(images[:1])))
        await gated.run_starts()
        tensors = asyncio.ensure_future(infer(stub, image_request(images[1:3])))
        digit = asyncio.ensure_future(digit_calls.recognize(native, images[3].tobytes()))
        await until(server.metrics.registry, "digits_queue_length_images", 3)
        gated.open()
        await asyncio.gather(first, tensors, digit)
    assert [len(batch) for batch in gated.batches] == [1, 3]


async def test_a_failed_run_is_an_internal_error_and_the_next_succeeds(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    gated.open()
    server = await start_server(gated)
    async with connect(server) as stub:
        error = await refused(infer(stub, image_request(np.full((1, 28, 28), 255, np.uint8))))
        assert error.code() is CODE.INTERNAL
        assert await infer(stub, image_request(images[:1]))


async def test_a_stream_answers_in_order_and_an_error_names_its_request(
    inference_stub: GRPCInferenceServiceStub, images: Images, outputs: NDArray[np.float32]
) -> None:
    requests = [
        image_request(images[number : number + 1], "probabilities", id=str(number), raw=number % 2 == 0)
        for number in range(100)
    ]
    requests[40] = image_request(images[:1, :27], id="40")
    call = inference_stub.ModelStreamInfer(iter(requests), timeout=TIMEOUT)
    answers: list[pb.ModelStreamInferResponse] = [answer async for answer in call]
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(100)]
    failed = answers.pop(40)
    assert failed.error_message == "images has shape [1, 27, 28], expected images, UINT8 [n, 28, 28], n at least 1"
    assert not failed.infer_response.outputs
    for answer in answers:
        response, number = answer.infer_response, int(answer.infer_response.id)
        assert not answer.error_message
        assert bool(response.raw_output_contents) == (number % 2 == 0)
        if response.raw_output_contents:
            assert_close(np.frombuffer(response.raw_output_contents[0], "<f4"), outputs[number, 10:20])
        else:
            assert_close(response.outputs[0].contents.fp32_contents, outputs[number, 10:20])


async def test_a_broken_crop_fails_a_request_without_decisions(
    inference_stub: GRPCInferenceServiceStub, crops: list[bytes]
) -> None:
    error = await refused(infer(inference_stub, crop_request([*crops[:5], b"no picture"], raw=False)))
    assert error.code() is CODE.INVALID_ARGUMENT
    assert error.details() == "crop 5 can't be read: neither a PNG nor a JPEG, but 10 bytes of something else"


async def test_crops_are_decided_on_as_in_the_native_api(
    inference_stub: GRPCInferenceServiceStub, stub: DigitServiceStub, crops: list[bytes]
) -> None:
    files = [*crops[:5], b"no picture"]
    request = crop_request(files, raw=False)
    for name in ("probabilities", "decisions"):
        request.outputs.add(name=name)
    request.parameters["target_error_rate"].double_param = 0.01
    answer = await infer(inference_stub, request)
    native = await digit_calls.recognize_batch(stub, crops=files, target_error_rate=0.01)
    assert list(answer.outputs[0].contents.fp32_contents) == pytest.approx(list(native.probabilities), abs=1e-6)
    assert list(answer.outputs[1].contents.uint_contents) == list(native.decisions)
    assert native.decisions[5] == DECISION_REJECT_INVALID_IMAGE
    parameters = {name: value.double_param for name, value in answer.parameters.items()}
    assert parameters == {"threshold": native.threshold, "target_error_rate": 0.01, "recognition_id": 0.0, "captured": 0.0}
    recognized = RecognitionIds().parse(answer.parameters["recognition_id"].string_param)
    assert list(recognized.digits) == list(native.digits)
    assert list(recognized.decisions) == list(native.decisions)
