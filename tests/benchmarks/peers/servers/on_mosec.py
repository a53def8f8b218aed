"""Mosec: two workers behind its Rust front, over HTTP with raw bytes both ways."""

import numpy as np
from mosec import Server, Worker
from network import Network, images


class Digits(Worker):
    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._network = Network()

    def deserialize(self, data: bytes) -> np.ndarray:
        return images(data)

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        return self._network.of_each(data)

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Digits, num=2, max_batch_size=64, max_wait_time=1)
    server.run()
