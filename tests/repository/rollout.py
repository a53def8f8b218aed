"""Steps of a rollout: calls to a server, changes to its model repository, and waits until the server has followed them."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from tests.support.calls import TIMEOUT
from tests.support.metrics import until

Images = NDArray[np.uint8]


async def recognize_all(server: Server, images: Images, **request: Any) -> list[pb.RecognizeResponse]:
    """Sends one Recognize per image, all at once; returns the answers in order."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        calls = [stub.Recognize(pb.RecognizeRequest(image=image.tobytes(), **request), timeout=TIMEOUT) for image in images]
        return list(await asyncio.gather(*calls))


def index(server: Server) -> dict[tuple[str, str], tuple[str, str]]:
    """Returns state and reason of every version, by model and version."""
    entries = server.repository.catalog.index()
    return {(entry.name, entry.version): (entry.state, entry.reason) for entry in entries}


def stable_version(server: Server) -> str:
    return server.repository.catalog.route().version


async def until_stable(server: Server, version: str) -> None:
    """Waits until a version is stable."""
    async with asyncio.timeout(TIMEOUT):
        while server.repository.catalog.answering()[0].version != version:
            await asyncio.sleep(0.01)


async def until_listed(server: Server, version: str, entry: tuple[str, str]) -> None:
    """Waits until a version of the model `digits` is listed with this state and reason."""
    async with asyncio.timeout(TIMEOUT):
        while index(server)["digits", version] != entry:
            await asyncio.sleep(0.01)


async def until_refused(server: Server, reason: str) -> None:
    """Waits until one version, or the routing, is refused for a reason."""
    await until(server.metrics.registry, "digits_model_refused", 1, reason=reason)


def write_routing(models: Path, text: str) -> None:
    """Replaces the routing.toml of the model `digits` atomically."""
    models.joinpath("digits", "new").write_text(text)
    models.joinpath("digits", "new").rename(models / "digits" / "routing.toml")
