"""What every peer runs, in its own environment: the model that is served, in ONNX Runtime with the same options."""

import os

import numpy as np
import onnxruntime

NAME = "digits"


class Network:
    """One ONNX Runtime session; `probabilities` may be called from several threads, each of which then runs it."""

    def __init__(self, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would starve the server's own threads
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(n, 10) float32, for (n, 28, 28) uint8."""
        (probabilities,) = self._session.run(["probabilities"], {"images": images})
        return probabilities

    def of_each(self, requests: list[np.ndarray]) -> list[np.ndarray]:
        """Of requests of (n, 28, 28) images each, run as one batch: an answer each."""
        ends = np.cumsum([len(images) for images in requests])[:-1]
        return np.split(self.probabilities(np.concatenate(requests)), ends)


def images(body: bytes) -> np.ndarray:
    """The images of a request whose body is nothing but their pixels."""
    return np.frombuffer(body, np.uint8).reshape(-1, 28, 28)
