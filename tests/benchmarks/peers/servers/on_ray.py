"""Ray Serve: two replicas with `serve.batch`, over HTTP with raw bytes both ways."""

import os
import signal

import numpy as np
import ray
from network import Network, images
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=2, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Digits:
    def __init__(self) -> None:
        self._network = Network()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0)
    async def probabilities(self, requests: list[np.ndarray]) -> list[np.ndarray]:
        return self._network.of_each(requests)

    async def __call__(self, request: Request) -> Response:
        answer = await self.probabilities(images(await request.body()))
        return Response(answer.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=128 << 20,
        runtime_env={"env_vars": {"MODEL": os.environ["MODEL"]}},
        _node_ip_address="127.0.0.1",
        _temp_dir=os.path.join(os.getcwd(), "ray"),  # noqa: PTH109, PTH118
    )
    address = {"host": "127.0.0.1", "port": int(os.environ["PORT"])}
    serve.start(http_options=address, logging_config={"enable_access_log": False})
    serve.run(Digits.bind(), route_prefix="/")
    signal.pause()
