"""What the tests share: real servers on free ports, the bundled model, drawn digits, and MNIST where there is a copy."""

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from serving.inference.model import Model
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from serving.repository import versions
from serving.samples.draw import draw_many
from serving.settings import BUNDLED, Settings
from tests.support.postgres import Postgres, programs, stopped

if TYPE_CHECKING:
    from training.dataset import Dataset


def pytest_configure() -> None:
    # A run that is cancelled ends what it has started, as one does that is interrupted by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


TIMEOUT = 20  # seconds; of every call in a test that is not about deadlines


@pytest.fixture(scope="session")
def bundled() -> versions.ModelVersion:
    return versions.latest(BUNDLED)


@pytest.fixture(scope="session")
def model(bundled: versions.ModelVersion) -> Model:
    return Model(bundled.path, str(bundled.number))


@pytest.fixture(scope="session")
def drawings() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A thousand drawn digits, (1000, 28, 28) uint8, and what they are, (1000,) uint8."""
    return draw_many(1000, seed=1)


@pytest.fixture(scope="session")
def drawn(drawings: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> "Dataset":
    """Those in MNIST's place: 800 to learn from, 200 to be judged on."""
    from training.dataset import Dataset, Examples

    examples = Examples(*drawings)
    return Dataset(examples[:800], examples[800:], "drawn")


@pytest.fixture(scope="session")
def images(drawings: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return drawings[0]


@pytest.fixture(scope="session")
def mnist_path() -> Path:
    """MNIST from $DIGITS_DATA or Keras' cache; a test that needs it is skipped where there is no copy."""
    named = os.environ.get("DIGITS_DATA")
    path = Path(named) if named else Path.home() / ".keras" / "datasets" / "mnist.npz"
    if named or path.is_file():
        return path  # a name that leads nowhere fails the tests: it was meant to be there
    pytest.skip("needs MNIST: set DIGITS_DATA to an mnist.npz, or run `make train` once where it can be downloaded")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", tmp_path], capture_output=True, check=False
    )
    if mounting.returncode:
        pytest.skip(f"mounting a small file system takes root's rights: {mounting.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that is not started yet."""
    directory = programs()
    if directory is None:
        pytest.skip("needs PostgreSQL's initdb and postgres: apt-get install postgresql")
    with stopped(directory) as made:
        yield made


class WarmModel(Model):
    """A real model that was loaded and warmed up before, so that a server on it starts at once."""

    def __init__(self, model: Model):
        self.__dict__.update(model.__dict__)

    def warm_up(self, max_batch_size: int) -> None:
        pass


class GatedModel(WarmModel):
    """A real model whose runs wait at a gate, so that a test decides when each may go on.

    Attributes:
        batches: the images of every run, in order.
        started: released once a run.
        gate: a run passes it once for each release.
    """

    def __init__(self, model: Model):
        super().__init__(model)
        self.batches: list[NDArray[np.uint8]] = []
        self.started = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches.append(images)
        self.started.release()
        assert self.gate.acquire(timeout=TIMEOUT), "the test never opened the gate"
        if (images[0] == 255).all():
            raise RuntimeError("a white image first in the batch breaks this model")
        return super().infer(images)

    def open(self, runs: int = 1_000_000) -> None:
        self.gate.release(runs)

    async def run_starts(self) -> None:
        """Waits until the model has been handed one more batch."""
        assert await asyncio.to_thread(self.started.acquire, timeout=TIMEOUT)


@pytest.fixture
def gated(model: Model) -> GatedModel:
    return GatedModel(model)


StartServer = Callable[..., Awaitable[Server]]


@pytest.fixture(scope="session")
def one_model(bundled: versions.ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the bundled `digits` in its newest version and nothing else."""
    directory = tmp_path_factory.mktemp("one-model")
    (directory / "digits").mkdir()
    (directory / "digits" / str(bundled.number)).symlink_to(bundled.path.parent)
    return directory


@pytest.fixture
async def start_server(model: Model, one_model: Path) -> AsyncIterator[StartServer]:
    """Starts real servers on free ports, on one model, with the settings given by name."""
    servers = []

    warm = WarmModel(model)

    async def start(served: Model | None = warm, **settings: Any) -> Server:
        """With `served` None, what is in the repository that the settings name; else that, loaded already."""
        open_model = Model if served is None else lambda *_: served
        server = Server(Settings(**{"grpc_port": 0, "metrics_port": 0, "models": one_model, **settings}), open_model)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop(drain_seconds=0, grace_seconds=TIMEOUT)


@pytest.fixture
async def server(start_server: StartServer) -> Server:
    return await start_server()


@pytest.fixture
async def stub(server: Server) -> AsyncIterator[DigitServiceStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield DigitServiceStub(channel)


async def refused(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return refusal.value


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """What a metric says now, added up over the series that have these labels; 0 when there is none."""
    samples = [sample for metric in registry.collect() for sample in metric.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


async def until(registry: CollectorRegistry, name: str, expected: float, **labels: str) -> None:
    """Waits until a metric, added up over the series that have these labels, says so."""
    async with asyncio.timeout(TIMEOUT):
        while value(registry, name, **labels) != expected:
            await asyncio.sleep(0.001)
