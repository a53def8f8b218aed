"""KServe's Python SDK: a custom `Model` in its `ModelServer`, called by the Open Inference Protocol over gRPC."""

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, logging, model_server
from network import NAME, Network

parser = argparse.ArgumentParser(parents=[model_server.parser])


class Digits(Model):
    def __init__(self) -> None:
        super().__init__(NAME)
        self._network = Network()
        self._threads = ThreadPoolExecutor(2)
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        images = payload.inputs[0].as_numpy()
        loop = asyncio.get_running_loop()
        probabilities = await loop.run_in_executor(self._threads, self._network.probabilities, images)
        output = InferOutput("probabilities", list(probabilities.shape), "FP32")
        output.set_data_from_numpy(probabilities, binary_data=payload.use_binary_outputs)
        return InferResponse(payload.id, NAME, [output], use_binary_outputs=payload.use_binary_outputs)


if __name__ == "__main__":
    parser.parse_args()
    logging.configure_logging()
    ModelServer(enable_latency_logging=False).start([Digits()])
