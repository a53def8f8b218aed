"""What the tests share: real servers on free ports, the bundled model, drawn digits, and MNIST where there is a copy."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.inference.model import Model
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from serving.repository import versions
from serving.samples.draw import draw_many
from serving.settings import BUNDLED, Settings
from tests.support.calls import TIMEOUT
from tests.support.models import GatedModel, WarmModel
from tests.support.postgres import Postgres, programs, stopped
from tests.support.servers import StartServer

if TYPE_CHECKING:
    from training.dataset import Dataset


def pytest_configure() -> None:
    # A run that is cancelled ends what it has started, as one does that is interrupted by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


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


@pytest.fixture
def gated(model: Model) -> GatedModel:
    return GatedModel(model)


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
