"""MLServer: a custom runtime, called by the Open Inference Protocol over gRPC.

settings.json configures the server, and model-settings.json the model. Two features for throughput are off, since each was
slower with every load that was tried. The pool of processes (parallel_workers) pickles all tensors as lists of numbers. The
adaptive batching (max_batch_size) joins and splits such lists on the event loop.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from network import Network


class Digits(MLModel):
    async def load(self) -> bool:
        self._network = Network()
        self._threads = ThreadPoolExecutor(2)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = NumpyCodec.decode_input(payload.inputs[0])
        loop = asyncio.get_running_loop()
        probabilities = await loop.run_in_executor(self._threads, self._network.probabilities, images)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", probabilities)])
