import asyncio
import json
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from serving.client import Decision, DigitClient
from serving.inference.classifier import CONFIDENCE, ONE_DIGIT, SHOWS, Classifier
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from serving.repository.versions import ModelVersion
from tests.support.calls import TIMEOUT, refused
from tests.support.digit_calls import connect, read_field
from tests.support.metrics import value
from tests.support.servers import StartServer

Images = NDArray[np.uint8]

CODE = grpc.StatusCode


@pytest.fixture(scope="session")
def certified(bundled: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model that has certified thresholds for fields of five digits, at error rates 0.05 and 0.01."""
    models = tmp_path_factory.mktemp("certified")
    (models / "digits" / "1").mkdir(parents=True)
    model = onnx.load(bundled.path)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    thresholds = {"5": {"0.05": {"threshold": 0.3, "coverage": 1.0}, "0.01": {"threshold": 0.97, "coverage": 0.9}}}
    onnx.helper.set_model_props(model, entries | {"field_thresholds": json.dumps(thresholds)})
    onnx.save(model, models / "digits" / "1" / "model.onnx")
    return models


@pytest.fixture
async def server(start_server: StartServer, certified: Path) -> Server:
    return await start_server(None, models=certified)


def number(model: Classifier, images: Images) -> str:
    """The most probable digits, as text."""
    return "".join(map(str, model.predict(images).argmax(axis=1)))


async def test_a_field_is_answered_with_one_value_and_its_joint_confidence(
    stub: DigitServiceStub, model: Classifier, images: Images
) -> None:
    expected = model.predict(images[:5])
    answer = await read_field(stub, images[:5].tobytes())
    assert answer.value == number(model, images[:5])
    assert answer.confidence == pytest.approx(expected.max(axis=1).prod(), abs=1e-5)
    candidates = np.argsort(-expected, axis=1, kind="stable")[:, :3]
    assert [list(one.digits) for one in answer.digits] == candidates.tolist()
    probabilities = np.take_along_axis(expected, candidates, axis=1)
    np.testing.assert_allclose([list(one.probabilities) for one in answer.digits], probabilities, atol=1e-5)


async def test_a_field_is_decided_on_and_counted_as_a_whole(
    stub: DigitServiceStub, server: Server, model: Classifier, images: Images
) -> None:
    answer = await read_field(stub, images[:5].tobytes())
    assert answer.decision == pb.DECISION_ACCEPT
    noise = np.random.default_rng(0).normal(0, 110, images.shape)
    noisy = np.clip(images + noise, 0, 255).astype(np.uint8)
    rows = model.classify(noisy)
    digits = np.flatnonzero(rows[:, SHOWS] == ONE_DIGIT)
    chosen = digits[np.argsort(rows[digits, CONFIDENCE])[:5]]
    least_confident = noisy[chosen]
    assert rows[chosen, CONFIDENCE].prod() < 0.97
    assert (await read_field(stub, least_confident.tobytes())).decision == pb.DECISION_REJECT_LOW_CONFIDENCE
    assert value(server.metrics.registry, "digits_fields_total") == 2
    assert value(server.metrics.registry, "digits_fields_total", decision="low_confidence") == 1
    assert value(server.metrics.registry, "digits_decisions_total") == 0, "single digits are not decided on"


async def test_the_threshold_of_a_field_depends_on_its_target_and_length(
    stub: DigitServiceStub, model: Classifier, images: Images
) -> None:
    strict = await read_field(stub, images[:5].tobytes())
    assert (strict.threshold, strict.target_error_rate) == (0.97, 0.01)
    lenient = await read_field(stub, images[:5].tobytes(), target_error_rate=0.2)
    assert (lenient.threshold, lenient.target_error_rate) == (0.3, 0.05)
    four = await read_field(stub, images[:4].tobytes())
    assert (four.decision, four.HasField("threshold")) == (pb.DECISION_REJECT_NOT_CERTIFIED, False)
    single = await read_field(stub, images[:1].tobytes())
    assert single.threshold == model.metadata.thresholds[0].confidence, "a field of one digit is a digit"


async def test_a_field_of_crops_is_rejected_as_invalid_if_one_is_broken(
    stub: DigitServiceStub, model: Classifier, images: Images, crops: list[bytes]
) -> None:
    assert (await read_field(stub, crops=crops[:5])).value == number(model, images[:5])
    broken = await read_field(stub, crops=[*crops[:4], b"no picture"])
    assert broken.decision == pb.DECISION_REJECT_INVALID_IMAGE
    assert list(broken.troubles) == [4]


async def test_a_field_is_looked_up_in_the_lexicon_that_the_request_names(
    start_server: StartServer, certified: Path, model: Classifier, images: Images, tmp_path: Path
) -> None:
    code = number(model, images[:5])
    (tmp_path / "with.txt").write_text(f"00000\n{code}\n")
    (tmp_path / "without.txt").write_text("\n".join(f"{other:05}" for other in range(100_000) if f"{other:05}" != code))
    server = await start_server(None, models=certified, lexicons=tmp_path)
    pixels = images[:5].tobytes()
    async with connect(server) as stub:
        listed = await read_field(stub, pixels, lexicon="with")
        assert (listed.value, listed.decision) == (code, pb.DECISION_ACCEPT)
        assert listed.confidence > 0.99
        unlisted = await read_field(stub, pixels, lexicon="without")
        assert (unlisted.value, unlisted.decision) == (code, pb.DECISION_REJECT_NOT_IN_LEXICON)
        four = await read_field(stub, images[:4].tobytes(), lexicon="with")
        assert (four.value, four.decision) == (code[:4], pb.DECISION_REJECT_NOT_IN_LEXICON)
        error = await refused(read_field(stub, pixels, lexicon="wihtout"))
        assert error.code() is CODE.INVALID_ARGUMENT
        assert error.details() == "there is no lexicon 'wihtout', this server has: with, without"

    def call() -> None:
        with DigitClient(f"127.0.0.1:{server.grpc_port}", timeout_seconds=TIMEOUT) as client:
            field = client.read_field(images[:5], lexicon="with")
            assert (field.value, field.decision, field.candidates.shape) == (code, Decision.ACCEPT, (5, 3))
            assert field.probabilities.shape == (5, 3)
            assert client.read_field(images[:5]).threshold == 0.97

    await asyncio.to_thread(call)


@pytest.mark.parametrize("length", [0, 19])
async def test_a_field_without_digits_or_with_more_than_18_is_refused(stub: DigitServiceStub, length: int) -> None:
    error = await refused(read_field(stub, bytes(784 * length)))
    assert error.code() is CODE.INVALID_ARGUMENT
