import json
from dataclasses import replace
from pathlib import Path

import grpc
import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.inference.model import Model
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.repository.versions import latest
from serving.samples.draw import draw_many
from tests.conftest import TIMEOUT, StartServer
from training import pipeline
from training.calibrate import softmax
from training.dataset import Dataset, Examples
from training.fit import logits
from training.recipes import RECIPES

# One recipe for each network; of two, the one with the optimiser that learns from a few hundred images.
NAMES = {recipe.network: name for name, recipe in RECIPES.items()}.values()
QUICK = ("cnn8", "mlp128", "convnet", "flagship-small")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES])
async def test_a_network_trained_on_a_few_hundred_drawings_answers_through_the_server_as_keras_did(
    start_server: StartServer, drawings: tuple[NDArray[np.uint8], NDArray[np.uint8]], tmp_path: Path, name: str
) -> None:
    test = Examples(*drawings)
    recipe = replace(RECIPES[name], batch_size=16, validation_images=min(100, RECIPES[name].validation_images))
    dataset = Dataset(Examples(*draw_many(600, seed=2)), test, sha256="none: drawn")
    version = pipeline.run(recipe, dataset, seed=0, epochs=12, model_directory=tmp_path / "digits")
    assert sorted(file.name for file in version.iterdir()) == ["MODEL_CARD.md", "model.keras", "model.onnx", "run.json"]

    found = latest(tmp_path)
    model = Model(found.path, str(found.number))
    server = await start_server(model)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        request = pb.RecognizeBatchRequest(images=test.images.tobytes())
        answer = await DigitServiceStub(channel).RecognizeBatch(request, timeout=TIMEOUT)

    record = json.loads((version / "run.json").read_text())
    network = keras.models.load_model(version / "model.keras")
    expected = softmax(logits(network, test.images), record["temperature"])
    assert list(answer.digits) == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(np.array(answer.probabilities).reshape(-1, 10), expected, atol=1e-4)
    assert answer.model_version == version.name
    accuracy = np.mean(np.array(answer.digits) == test.labels)
    assert accuracy == pytest.approx(model.metadata.test_accuracy)
    assert accuracy > 0.9, "600 drawings teach a network to read drawings"
