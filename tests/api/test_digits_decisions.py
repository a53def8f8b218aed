import asyncio

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.client import Decision, DigitClient, Recognition, Refusal
from serving.inference.classifier import Classifier
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from tests.support.calls import TIMEOUT, refused
from tests.support.digit_calls import connect, recognize, recognize_batch
from tests.support.servers import StartServer

Images = NDArray[np.uint8]

CODE = grpc.StatusCode


async def test_an_answer_is_decided_by_the_threshold_certified_for_its_target(
    start_server: StartServer, model: Classifier, images: Images
) -> None:
    server = await start_server(target_error_rate=0.002)
    confidences = model.predict(images).max(axis=1)
    least_confident = int(confidences.argmin())
    thresholds = {threshold.target_error_rate: threshold.confidence for threshold in model.metadata.thresholds}
    assert set(thresholds) == {0.01, 0.005, 0.002}
    async with connect(server) as stub:
        for target, certified in ((0, 0.002), (0.002, 0.002), (0.004, 0.002), (0.005, 0.005), (0.3, 0.01)):
            answer = await recognize_batch(stub, images.tobytes(), target_error_rate=target)
            assert (answer.target_error_rate, answer.threshold) == (certified, thresholds[certified])
            accepted = np.array(answer.decisions) == pb.DECISION_ACCEPT
            np.testing.assert_array_equal(accepted, np.array(answer.confidences) >= thresholds[certified])
            assert (np.array(answer.decisions)[~accepted] == pb.DECISION_REJECT_LOW_CONFIDENCE).all()
            request = pb.RecognizeRequest(image=images[least_confident].tobytes(), target_error_rate=target)
            single = await stub.Recognize(request, timeout=TIMEOUT)
            assert (single.target_error_rate, single.threshold) == (certified, thresholds[certified])
            assert single.decision == answer.decisions[least_confident]


async def test_a_target_below_all_certified_ones_rejects_every_answer(stub: DigitServiceStub, images: Images) -> None:
    answer = await recognize_batch(stub, images.tobytes(), target_error_rate=0.0001)
    assert not answer.HasField("target_error_rate")
    assert not answer.HasField("threshold")
    assert set(answer.decisions) == {pb.DECISION_REJECT_NOT_CERTIFIED}


@pytest.mark.parametrize("target", [-0.1, 1.0, float("nan")])
async def test_a_target_that_is_not_a_share_below_1_is_refused(
    stub: DigitServiceStub, images: Images, target: float
) -> None:
    error = await refused(recognize_batch(stub, images.tobytes(), target_error_rate=target))
    assert error.code() is CODE.INVALID_ARGUMENT
    assert f"target_error_rate is {target}, expected a share below 1" in (error.details() or "")


async def test_a_blank_image_is_rejected_as_invalid(stub: DigitServiceStub, images: Images) -> None:
    assert (await recognize(stub, bytes(784))).decision == pb.DECISION_REJECT_INVALID_IMAGE
    answer = await recognize_batch(stub, bytes(784) + images[0].tobytes())
    assert [decision == pb.DECISION_REJECT_INVALID_IMAGE for decision in answer.decisions] == [True, False]


async def test_the_client_reports_decisions_on_arrays_and_crops(server: Server, images: Images, crops: list[bytes]) -> None:
    def call() -> None:
        with DigitClient(f"127.0.0.1:{server.grpc_port}", timeout_seconds=TIMEOUT) as client:
            one, many = client.recognize(crops[0], target_error_rate=0.01), client.recognize_batch(crops)
            assert (one.digit, one.target_error_rate, many[0].target_error_rate) == (many[0].digit, 0.01, 0.005)
            assert one.decision is Decision.ACCEPT
            assert one.threshold
            assert many[0].threshold
            assert one.threshold < many[0].threshold
            [broken] = client.recognize_batch([b"no picture"], target_error_rate=0.0001)
            assert (broken.decision, broken.threshold) == (Decision.REJECT_INVALID_IMAGE, None)
            assert "neither a PNG nor a JPEG" in broken.trouble
            assert len(client.recognize_batch(images[:3])) == 3
            streamed = dict(client.recognize_stream([crops[0], images[0], b"no picture"], target_error_rate=0.01))
            assert isinstance(streamed[0], Recognition)
            assert (streamed[0].digit, streamed[0].threshold) == (one.digit, one.threshold)
            assert isinstance(streamed[1], Recognition)
            assert isinstance(streamed[2], Refusal)

    await asyncio.to_thread(call)
