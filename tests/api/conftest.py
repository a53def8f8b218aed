from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.inference.classifier import Classifier
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serving.process.server import Server
from serving.samples.photograph import photograph
from tests.support import infer_calls, model_files


@pytest.fixture
async def inference_stub(server: Server) -> AsyncIterator[GRPCInferenceServiceStub]:
    async with infer_calls.connect(server) as stub:
        yield stub


@pytest.fixture
def outputs(model: Classifier, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(1000, 21) logits, probabilities and `whole` of the drawn digits."""
    return model.infer(images)


@pytest.fixture
def crops(images: NDArray[np.uint8]) -> list[bytes]:
    """Photographs of the first 20 drawn digits."""
    random = np.random.default_rng(1)
    return [photograph(image, random) for image in images[:20]]


@pytest.fixture
def two_models(tmp_path: Path) -> Path:
    """A repository with two models: digits, whose version 2 is a canary for half of the keys, and post."""
    for name, version in (("digits", 1), ("digits", 2), ("post", 7)):
        model_files.publish(tmp_path, version, name)
    (tmp_path / "digits" / "routing.toml").write_text("stable = 1\ncanary = { version = 2, percent = 50 }\n")
    return tmp_path
