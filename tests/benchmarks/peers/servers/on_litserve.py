"""LitServe: two workers, over HTTP with raw bytes both ways."""

import os
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response
from network import Network, images


class Digits(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._network = Network()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> np.ndarray:
        return images(request)

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return inputs

    def predict(self, x: list[np.ndarray]) -> list[np.ndarray]:
        return self._network.of_each(x)

    def unbatch(self, output: list[np.ndarray]) -> list[np.ndarray]:
        return output

    def encode_response(self, output: np.ndarray) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    api = Digits(max_batch_size=64, batch_timeout=0.001)
    # It would poll without rest at a batch_timeout of 0.
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2, fast_queue=True)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
