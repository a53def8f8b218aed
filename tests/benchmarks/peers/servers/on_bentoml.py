"""BentoML: two workers with adaptive batching, over HTTP with arrays in JSON, its format for arrays."""

from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType
from network import Network
from numpy.typing import NDArray


@bentoml.service(workers=2, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Digits:
    def __init__(self) -> None:
        self._network = Network()

    @bentoml.api(batchable=True, max_batch_size=4096, max_latency_ms=60000)
    def predict(self, images: Annotated[NDArray[np.uint8], DType("uint8")]) -> NDArray[np.float32]:
        return self._network.probabilities(images)
