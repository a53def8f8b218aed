import asyncio
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.imaging.crop import frame_crop
from serving.inference.classifier import Classifier
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from serving.samples.photograph import encode
from tests.support.calls import TIMEOUT, refused
from tests.support.digit_calls import connect, recognize_batch
from tests.support.metrics import until, value
from tests.support.servers import StartServer

Images = NDArray[np.uint8]

CODE = grpc.StatusCode


async def test_a_crop_is_answered_as_its_framed_image(stub: DigitServiceStub, model: Classifier, crops: list[bytes]) -> None:
    expected = model.predict(frame_crop(crops[0]).image[None])[0]
    answer = await stub.Recognize(pb.RecognizeRequest(crop=crops[0]), timeout=TIMEOUT)
    assert list(answer.probabilities) == pytest.approx(expected.tolist(), abs=1e-5)


async def test_a_broken_crop_in_a_stream_is_refused_and_the_others_are_answered(
    stub: DigitServiceStub, model: Classifier, crops: list[bytes]
) -> None:
    async def requests() -> AsyncIterator[pb.RecognizeStreamRequest]:
        yield pb.RecognizeStreamRequest(id=1, request=pb.RecognizeRequest(crop=crops[0]))
        yield pb.RecognizeStreamRequest(id=2, request=pb.RecognizeRequest(crop=b"no picture"))

    expected = model.predict(frame_crop(crops[0]).image[None])[0]
    answers = {answer.id: answer async for answer in stub.RecognizeStream(requests(), timeout=TIMEOUT)}
    assert list(answers[1].answer.probabilities) == pytest.approx(expected.tolist(), abs=1e-5)
    assert (answers[2].error.code, answers[2].error.message) == (
        CODE.INVALID_ARGUMENT.value[0],
        "crop: neither a PNG nor a JPEG, but 10 bytes of something else",
    )


async def test_broken_and_blank_crops_of_a_batch_are_rejected_alone(
    stub: DigitServiceStub, model: Classifier, server: Server, crops: list[bytes]
) -> None:
    expected = model.predict(np.stack([frame_crop(crop).image for crop in crops])).argmax(axis=1).tolist()
    crops[3], crops[7] = crops[3][:100], encode(np.full((90, 60), 200, np.uint8), "PNG")
    answer = await recognize_batch(stub, crops=crops)
    assert len(answer.digits) == len(answer.decisions) == 20
    invalid = [index for index, one in enumerate(answer.decisions) if one == pb.DECISION_REJECT_INVALID_IMAGE]
    assert invalid == [3, 7], "a broken file, and a photo of blank paper"
    assert [digit for index, digit in enumerate(answer.digits) if index not in invalid] == [
        digit for index, digit in enumerate(expected) if index not in invalid
    ]
    assert list(answer.troubles) == [3]
    assert "the file is broken" in answer.troubles[3]
    assert value(server.metrics.registry, "digits_decisions_total", decision="invalid_image") == 2
    assert value(server.metrics.registry, "digits_decisions_total") == 20


async def test_an_image_with_a_crop_is_refused(stub: DigitServiceStub, images: Images, crops: list[bytes]) -> None:
    request = pb.RecognizeRequest(image=images[0].tobytes(), crop=crops[0])
    error = await refused(stub.Recognize(request, timeout=TIMEOUT))
    assert error.code() is CODE.INVALID_ARGUMENT
    assert error.details() == "there are images and crops: expected one of the two"


async def test_more_crops_than_the_limit_are_refused(start_server: StartServer) -> None:
    server = await start_server(max_images_per_request=10)
    async with connect(server) as stub:
        error = await refused(recognize_batch(stub, crops=[b"x"] * 20))
    assert error.code() is CODE.INVALID_ARGUMENT
    assert error.details() == "crops holds 20 images, this server takes 10 a call"


async def test_crops_in_flight_are_answered_when_the_server_stops(start_server: StartServer, crops: list[bytes]) -> None:
    server = await start_server()
    async with connect(server) as stub:
        answering = asyncio.ensure_future(recognize_batch(stub, crops=crops * 15))
        await until(server.metrics.registry, "digits_in_flight_requests", 1)
        stopping = asyncio.create_task(server.stop(drain_seconds=0, grace_seconds=TIMEOUT))
        assert len((await answering).digits) == 300
        await stopping
