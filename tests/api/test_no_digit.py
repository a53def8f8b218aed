import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.client import Decision, DigitClient, Recognition
from serving.feedback import capture
from serving.feedback.capture_records import NO_DIGIT_BY_FRAMER
from serving.imaging import crop
from serving.inference.classifier import Classifier
from serving.inference.model import open_model
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as inference
from serving.process.server import Server
from tests.support import infer_calls
from tests.support.calls import TIMEOUT
from tests.support.captured_store import rows
from tests.support.digit_calls import connect, read_field, recognize, recognize_batch
from tests.support.metrics import value
from tests.support.model_files import SPECK, publish_contract_1, publish_whole
from tests.support.servers import StartServer

Images = NDArray[np.uint8]
ACCEPT, NO_DIGIT, INVALID = pb.DECISION_ACCEPT, pb.DECISION_REJECT_NO_DIGIT, pb.DECISION_REJECT_INVALID_IMAGE
NEVER_CERTIFIED = 1e-6  # no threshold is certified for this error rate


@pytest.fixture(scope="module")
def judging(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A model of contract 2, to which SPECK is no digit, and every drawn digit is one."""
    return open_model(publish_whole(tmp_path_factory.mktemp("judging"), 1).read_bytes(), "1")


@pytest.fixture
async def server(start_server: StartServer, judging: Classifier) -> Server:
    return await start_server(judging)


@pytest.fixture
async def before(start_server: StartServer, tmp_path: Path) -> Server:
    """A server of the same model with contract 1."""
    return await start_server(open_model(publish_contract_1(tmp_path, 1).read_bytes(), "1"))


@pytest.fixture(scope="module")
def three(images: Images) -> Images:
    """A digit, a speck and blank paper, (3, 28, 28) uint8."""
    return np.stack([images[0], SPECK, np.zeros((28, 28), np.uint8)])


async def test_an_image_that_is_no_digit_is_rejected_as_such(server: Server, three: Images) -> None:
    async with connect(server) as stub:
        digit, speck = [await recognize(stub, image.tobytes()) for image in three[:2]]
        assert (digit.decision, speck.decision) == (ACCEPT, NO_DIGIT)
        assert [digit.whole, speck.whole] == pytest.approx([0.9, 0.1])
        answer = await recognize_batch(stub, three.tobytes())
    assert list(answer.decisions) == [ACCEPT, NO_DIGIT, INVALID]
    assert list(answer.whole) == pytest.approx([0.9, 0.1, 0.1])
    registry = server.metrics.registry
    assert value(registry, "digits_decisions_total", decision="no_digit") == 2
    assert value(registry, "digits_predictions_total") == 2, "what is no digit is not a prediction"


async def test_what_is_no_digit_is_so_at_any_error_rate(server: Server, three: Images) -> None:
    async with connect(server) as stub:
        answer = await recognize_batch(stub, three.tobytes(), target_error_rate=NEVER_CERTIFIED)
    assert list(answer.decisions) == [pb.DECISION_REJECT_NOT_CERTIFIED, NO_DIGIT, INVALID]


async def test_a_model_of_contract_1_takes_everything_for_a_digit(before: Server, three: Images) -> None:
    async with connect(before) as stub:
        answer = await recognize_batch(stub, three.tobytes())
        field = await read_field(stub, three[:2].tobytes())
    assert list(answer.whole) == [1, 1, 1]
    assert NO_DIGIT not in answer.decisions
    assert answer.decisions[2] == INVALID
    assert [(one.whole, one.no_digit) for one in field.digits] == [(1, False)] * 2


async def test_an_image_of_a_stream_is_rejected_as_no_digit(server: Server, three: Images) -> None:
    async def requests() -> AsyncIterator[pb.RecognizeStreamRequest]:
        for number, image in enumerate(three):
            yield pb.RecognizeStreamRequest(id=number, request=pb.RecognizeRequest(image=image.tobytes()))

    async with connect(server) as stub:
        answers = {one.id: one.answer.decision async for one in stub.RecognizeStream(requests(), timeout=TIMEOUT)}
    assert answers == {0: ACCEPT, 1: NO_DIGIT, 2: INVALID}


async def test_one_image_that_is_no_digit_rejects_its_field_and_is_named(
    start_server: StartServer, judging: Classifier, images: Images, tmp_path: Path
) -> None:
    (tmp_path / "zip.txt").write_text("00000\n11111\n")
    server = await start_server(judging, lexicons=tmp_path)
    pieces = images[:5].copy()
    pieces[2] = SPECK
    async with connect(server) as stub:
        assert (await read_field(stub, images[:5].tobytes())).decision == ACCEPT
        for lexicon, rate in (("", 0.0), ("zip", 0.0), ("", NEVER_CERTIFIED)):
            field = await read_field(stub, pieces.tobytes(), lexicon=lexicon, target_error_rate=rate)
            assert field.decision == NO_DIGIT
            assert [one.no_digit for one in field.digits] == [False, False, True, False, False]
            assert [one.whole for one in field.digits] == pytest.approx([0.9, 0.9, 0.1, 0.9, 0.9])
        pieces[4] = 0
        field = await read_field(stub, pieces.tobytes())
        assert field.decision == INVALID
        assert [one.no_digit for one in field.digits] == [False, False, True, False, False], "blank is not no digit"
    assert value(server.metrics.registry, "digits_fields_total", decision="no_digit") == 3


@pytest.fixture
def second_doubted(crops: list[bytes], monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Three crops, of which the framer doubts the second."""
    frame_crop = crop.frame_crop

    def doubt_the_second(content: bytes) -> crop.Framed:
        framed = frame_crop(content)
        return framed if content != crops[1] else framed._replace(whole=False)

    monkeypatch.setattr(crop, "frame_crop", doubt_the_second)
    return crops[:3]


@pytest.mark.parametrize("contract", ["1", "2"])
async def test_a_crop_that_the_framer_doubts_is_no_digit_to_any_model(
    start_server: StartServer, judging: Classifier, second_doubted: list[bytes], tmp_path: Path, contract: str
) -> None:
    served = judging if contract == "2" else open_model(publish_contract_1(tmp_path, 1).read_bytes(), "1")
    server = await start_server(served)
    async with connect(server) as stub:
        answer = await recognize_batch(stub, crops=second_doubted)
        field = await read_field(stub, crops=second_doubted)
    assert [decision == NO_DIGIT for decision in answer.decisions] == [False, True, False]
    assert answer.whole[1] == 0
    assert min(answer.whole[0], answer.whole[2]) > 0.5
    assert (field.decision, [one.no_digit for one in field.digits]) == (NO_DIGIT, [False, True, False])


async def test_a_captured_crop_says_that_the_framer_refused_it(
    start_server: StartServer, second_doubted: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "_IMAGE_TIMEOUT_SECONDS", TIMEOUT)  # however slow the disk is
    file = tmp_path / "captured.db"
    server = await start_server(capture=f"sqlite:///{file}")
    async with connect(server) as stub:
        answer = await recognize_batch(stub, crops=second_doubted, target_error_rate=NEVER_CERTIFIED)
        field = await read_field(stub, crops=second_doubted)
    assert answer.captured
    assert field.captured
    assert rows(file, "SELECT place, field_length, decision FROM captured_images ORDER BY number") == [
        *((place, 0, NO_DIGIT_BY_FRAMER if place == 1 else "not_certified") for place in range(3)),
        *((place, 3, NO_DIGIT_BY_FRAMER if place == 1 else "no_digit") for place in range(3)),
    ]


async def test_the_tensor_api_returns_whole_and_the_decision(server: Server, before: Server, three: Images) -> None:
    for served, contract in ((server, "2"), (before, "1")):
        async with infer_calls.connect(served) as stub:
            every = await infer_calls.infer(stub, infer_calls.image_request(three, raw=False))
            names = ["logits", "probabilities"] + ["whole"] * (contract == "2")
            assert [(one.name, list(one.shape)) for one in every.outputs] == [
                (name, [3, 1 if name == "whole" else 10]) for name in names
            ]
            request = infer_calls.image_request(three, "whole", "decisions", raw=False)
            whole, decisions = (await infer_calls.infer(stub, request)).outputs
            assert (whole.name, whole.datatype, list(whole.shape)) == ("whole", "FP32", [3, 1])
            expected = [0.9, 0.1, 0.1] if contract == "2" else [1, 1, 1]
            assert list(whole.contents.fp32_contents) == pytest.approx(expected)
            assert (decisions.contents.uint_contents[1] == NO_DIGIT) == (contract == "2")
            metadata = await stub.ModelMetadata(inference.ModelMetadataRequest(name="digits"), timeout=TIMEOUT)
            assert [(one.name, one.datatype, list(one.shape)) for one in metadata.outputs] == [
                (name, "FP32", [-1, 1 if name == "whole" else 10]) for name in names
            ]
            config = (await stub.ModelConfig(inference.ModelConfigRequest(name="digits"), timeout=TIMEOUT)).config
            assert [one.name for one in config.output] == names


async def test_whole_may_be_requested_while_a_canary_has_another_contract(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish_contract_1(tmp_path, 1)
    publish_whole(tmp_path, 2)
    (tmp_path / "digits" / "routing.toml").write_text("stable = 1\n[canary]\nversion = 2\npercent = 50\n")
    server = await start_server(None, models=tmp_path)
    async with infer_calls.connect(server) as stub:
        whole = {}
        for number in range(30):
            key = {"key": inference.InferParameter(string_param=f"piece {number}")}
            answer = await infer_calls.infer(stub, infer_calls.image_request(images[:1], "whole", raw=False, parameters=key))
            whole[answer.model_version] = answer.outputs[0].contents.fp32_contents[0]
    assert whole == {"1": 1, "2": pytest.approx(0.9)}


async def test_the_client_gives_the_decision_whole_and_the_images_of_no_digit(server: Server, three: Images) -> None:
    def call() -> None:
        with DigitClient(f"127.0.0.1:{server.grpc_port}", timeout_seconds=TIMEOUT) as client:
            speck = client.recognize(SPECK)
            assert speck.decision is Decision.REJECT_NO_DIGIT
            assert speck.whole == pytest.approx(0.1)
            many = client.recognize_batch(three)
            assert [one.whole for one in many] == pytest.approx([0.9, 0.1, 0.1])
            field = client.read_field(np.stack([three[0], SPECK, SPECK]))
            assert (field.decision, field.no_digits) == (Decision.REJECT_NO_DIGIT, (1, 2))
            assert field.whole == pytest.approx([0.9, 0.1, 0.1])
            ((_, streamed),) = client.recognize_stream([SPECK])
            assert isinstance(streamed, Recognition)
            assert streamed.decision is Decision.REJECT_NO_DIGIT

    await asyncio.to_thread(call)
