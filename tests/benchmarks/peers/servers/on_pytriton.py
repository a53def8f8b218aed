"""PyTriton: two callables, each an instance that receives whole batches from Triton, called over Triton's gRPC."""

import os

import numpy as np
from network import NAME, Network
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def instance():
    network = Network()

    @batch
    def infer(images: np.ndarray) -> dict[str, np.ndarray]:
        return {"probabilities": network.probabilities(images)}

    return infer


if __name__ == "__main__":
    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=int(os.environ["PORT"]),
        http_address="127.0.0.1",
        http_port=int(os.environ["SECOND_PORT"]),  # PyTriton itself waits for it
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=NAME,
            infer_func=[instance(), instance()],
            inputs=[Tensor(name="images", dtype=np.uint8, shape=(28, 28))],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(10,))],
            config=ModelConfig(max_batch_size=1024, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
