"""The model in ONNX Runtime with our service's options; every peer imports this file in its own environment."""

import os

import numpy as np
import onnxruntime

NAME = "digits"


class Network:
    """One ONNX Runtime session; several threads may call `probabilities` at the same time."""

    def __init__(self, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would starve the server's own threads
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Maps (n, 28, 28) uint8 to (n, 10) float32."""
        (probabilities,) = self._session.run(["probabilities"], {"images": images})
        return probabilities

    def of_each(self, requests: list[np.ndarray]) -> list[np.ndarray]:
        """Runs several requests of (n, 28, 28) images as one batch, and splits the answers again."""
        ends = np.cumsum([len(images) for images in requests])[:-1]
        return np.split(self.probabilities(np.concatenate(requests)), ends)


def images(body: bytes) -> np.ndarray:
    """Returns the images of a request body that holds only their pixels."""
    return np.frombuffer(body, np.uint8).reshape(-1, 28, 28)
