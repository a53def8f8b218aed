import json
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from tests.support.calls import TIMEOUT
from tests.support.drawings import draw_many
from tests.support.servers import StartServer
from tests.training.names import RECIPE_OF_NETWORK
from training.calibrate import softmax
from training.dataset import Dataset, Examples
from training.evaluate import predict_logits
from training.version_directory import load_network

QUICK = ("cnn8", "mlp128", "convnet", "flagship-small")
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RECIPE_OF_NETWORK.values()]


@pytest.mark.parametrize("front", ["http2"])  # a front does not see which network answers
@pytest.mark.parametrize("name", ALL)
async def test_the_server_gives_the_answers_of_a_trained_keras_network(
    start_server: StartServer, drawings: tuple[NDArray[np.uint8], NDArray[np.uint8]], tmp_path: Path, name: str
) -> None:
    from training import pipeline
    from training.recipes import RECIPES
    from training.teacher import find_teacher

    test = Examples(*drawings)
    recipe = replace(RECIPES[name], batch_size=16, validation_images=min(100, RECIPES[name].validation_images))
    dataset = Dataset(Examples(*draw_many(600, seed=2)), test, sha256="none: drawn")
    teacher = find_teacher(recipe)
    version = pipeline.run(recipe, dataset, seed=0, epochs=12, model_directory=tmp_path / "digits", teacher=teacher)
    assert sorted(file.name for file in version.iterdir()) == ["MODEL_CARD.md", "model.keras", "model.onnx", "run.json"]

    server = await start_server(None, models=tmp_path)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        request = pb.RecognizeBatchRequest(images=test.images.tobytes())
        answer = await DigitServiceStub(channel).RecognizeBatch(request, timeout=TIMEOUT)

    record = json.loads((version / "run.json").read_text())
    expected = softmax(predict_logits(load_network(version), test.images), record["temperature"])
    assert list(answer.digits) == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(np.array(answer.probabilities).reshape(-1, 10), expected, atol=1e-4)
    assert answer.model_version == version.name
    accuracy = np.mean(np.array(answer.digits) == test.labels)
    assert accuracy == pytest.approx(server.repository.catalog.route().model.metadata.test_accuracy)
    assert accuracy > 0.9, "600 drawings suffice to recognize drawings"
