"""Triton's Python backend: a process of each instance, which is handed the requests of a batch together."""

import triton_python_backend_utils as pb_utils
from network import Network


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._network = Network()

    def execute(self, requests: list) -> list:
        images = [pb_utils.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("probabilities", probabilities)])
            for probabilities in self._network.of_each(images)
        ]
