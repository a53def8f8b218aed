"""Fixtures for all tests: real servers on free ports, the bundled model, drawn digits, and MNIST where there is a copy."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from serving.cores import usable_cores
from serving.inference.classifier import Classifier
from serving.inference.model import open_model
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from serving.repository import versions
from serving.settings import BUNDLED, Settings
from serving.transport import grpc_front
from tests.support.calls import TIMEOUT
from tests.support.drawings import draw_many
from tests.support.environment import unset_machine_variables
from tests.support.models import GatedModel, WarmModel, opens
from tests.support.postgres import Postgres, programs, stopped
from tests.support.servers import StartServer

if TYPE_CHECKING:
    from training.dataset import Dataset

MOST_WORKERS = 6  # each takes up to a gigabyte once it trains, and many tests start a server that uses every core


def end_with_children(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Ends a cancelled run (SIGTERM) as Ctrl-C does, and with it the test processes of pytest-xdist and their servers.

    pytest-xdist alone would kill a test process that takes longer than ten seconds to end, and leave its servers running.
    """
    for child in psutil.Process().children():
        child.terminate()
    raise KeyboardInterrupt


def pytest_configure() -> None:
    signal.signal(signal.SIGTERM, end_with_children)
    unset_machine_variables(os.environ)
    # Several test processes share the cores: threads of TensorFlow would only wait for each other.
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


@pytest.hookimpl(optionalhook=True)  # absent without pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Number of test processes for `-n auto`: one more than cores, because many tests mostly wait."""
    return min(usable_cores() + 1, MOST_WORKERS)


@pytest.fixture(scope="session")
def bundled() -> versions.ModelVersion:
    return versions.latest(BUNDLED)


@pytest.fixture(scope="session")
def model(bundled: versions.ModelVersion) -> Classifier:
    return open_model(bundled.path.read_bytes(), str(bundled.number))


@pytest.fixture(scope="session")
def drawings() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A thousand drawn digits, (1000, 28, 28) uint8, and their labels, (1000,) uint8."""
    return draw_many(1000, seed=1)


@pytest.fixture(scope="session")
def drawn(drawings: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> "Dataset":
    """The drawings in place of MNIST: 800 training images, 200 test images."""
    from training.dataset import Dataset, Examples

    examples = Examples(*drawings)
    return Dataset(examples[:800], examples[800:], "drawn")


@pytest.fixture(scope="session")
def images(drawings: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return drawings[0]


@pytest.fixture(scope="session")
def mnist_path() -> Path:
    """MNIST from $DIGITS_DATA or Keras' cache; tests that need it are skipped where there is no copy."""
    named = os.environ.get("DIGITS_DATA")
    path = Path(named) if named else Path.home() / ".keras" / "datasets" / "mnist.npz"
    if named or path.is_file():
        return path  # a named file that is missing fails the tests: someone meant to provide it
    pytest.skip("needs MNIST: set DIGITS_DATA to an mnist.npz, or run `make train` once where it can be downloaded")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", tmp_path], capture_output=True, check=False
    )
    if mounting.returncode:
        pytest.skip(f"only root can mount a small file system: {mounting.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that is not started yet."""
    directory = programs()
    if directory is None:
        pytest.skip("needs PostgreSQL's initdb and postgres: apt-get install postgresql")
    with stopped(directory) as server:
        yield server


@pytest.fixture
def gated(model: Classifier) -> GatedModel:
    return GatedModel(model)


@pytest.fixture(scope="session")
def one_model(bundled: versions.ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that holds only the newest bundled version of `digits`."""
    directory = tmp_path_factory.mktemp("one-model")
    (directory / "digits").mkdir()
    (directory / "digits" / str(bundled.number)).symlink_to(bundled.path.parent)
    return directory


@pytest.fixture(params=["http2", "grpcio"])
def front(request: pytest.FixtureRequest) -> str:
    """Both fronts, so that every test of a server runs on each."""
    return str(request.param)


@pytest.fixture
async def start_server(model: Classifier, one_model: Path, front: str) -> AsyncIterator[StartServer]:
    """Starts real servers on free ports, on one model, with the settings given by name."""
    servers: list[Server] = []
    warm = WarmModel(model)

    async def start(served: Classifier | None = warm, **settings: Any) -> Server:
        """Serves `served`, which is loaded already; None loads the versions of the repository in `models`."""
        opener = None if served is None else opens(served)
        server = Server(
            Settings(**{"grpc_port": 0, "metrics_port": 0, "front": front, "models": one_model, **settings}), opener
        )
        await server.start()
        servers.append(server)
        return server

    yield start
    with pytest.MonkeyPatch.context() as patch:
        # These pauses inform the callers of a service that stops; here every caller has gone.
        patch.setattr(grpc_front, "_REFUSING_SECONDS", 0)
        patch.setattr(grpc_front, "_CLOSING_SECONDS", 0)
        for server in servers:
            await server.stop(drain_seconds=0, grace_seconds=TIMEOUT)


@pytest.fixture
async def server(start_server: StartServer) -> Server:
    return await start_server()


@pytest.fixture
async def stub(server: Server) -> AsyncIterator[DigitServiceStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield DigitServiceStub(channel)
