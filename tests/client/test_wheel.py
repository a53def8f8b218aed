import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from serving.samples.draw import SAMPLES
from tests.support.service import service

ROOT = Path(__file__).parent.parent.parent
CLIENT = ROOT / "serving" / "client"

CALL = """
import sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from postal_digits import Decision, DigitClient

crop = Path(sys.argv[2]).read_bytes()
with DigitClient(sys.argv[1], timeout_seconds=20) as client:
    answer = client.recognize(crop)
    assert (answer.digit, answer.decision) == (7, Decision.ACCEPT), answer
    assert [one.digit for _, one in client.recognize_stream([crop])] == [7]
assert not [name for name in sys.modules if name.split(".")[0] in ("serving", "PIL")]
"""

CALL_WITH_TRITON = """
import numpy as np
import tritonclient.grpc as triton

tensor = triton.InferInput("images", [1, 28, 28], "UINT8")
tensor.set_data_from_numpy(np.zeros((1, 28, 28), np.uint8))
with triton.InferenceServerClient(sys.argv[1]) as server:
    assert server.infer("digits", [tensor], client_timeout=20).as_numpy("logits").shape == (1, 10)

try:
    import postal_digits.client.image_files
except ModuleNotFoundError as error:
    assert str(error) == "reading image files needs Pillow: pip install pillow"
else:
    raise AssertionError("Pillow is installed")
"""


def run(*command: str | Path, timeout: float = 250, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command outside the checkout, without the variables that lead Python to it."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)), cwd="/", env=inherited | environment, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `make client` builds it."""
    directory = tmp_path_factory.mktemp("dist")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(directory), str(CLIENT)]
    built = run(sys.executable, "-m", "pip", "wheel", *options, PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    assert built.returncode == 0, built.stderr
    [file] = directory.iterdir()
    return file


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as an installation unpacks it."""
    directory = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


def test_the_wheel_holds_the_client_and_its_stubs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    client = {f"postal_digits/client/{file.name}" for file in CLIENT.glob("*.py")}
    stubs = {f"postal_digits/{file.relative_to(ROOT / 'serving')}" for file in ROOT.glob("serving/pb/digits/v1/*.py*")}
    assert names == client | stubs | {"postal_digits/__init__.py", "postal_digits/py.typed"}
    assert wheel.stat().st_size < 50_000


def test_the_wheel_states_the_services_version_and_few_requirements(wheel: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith("METADATA")]
        stated = BytesParser().parsebytes(archive.read(metadata))
    assert (stated["Name"], stated["Version"]) == ("postal-digits-client", version)
    assert "`DigitClient` sends single\nimages, batches" in stated.get_payload()
    required = [line for line in stated.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.split(">")[0].split("<")[0] for line in required) == ["grpcio", "numpy", "protobuf"]


def test_the_wheels_client_calls_the_service(unpacked: Path) -> None:
    with service("--workers", "1") as server:
        called = run(sys.executable, "-c", CALL, server.address, SAMPLES / "7.png", PYTHONPATH=str(unpacked))
    assert called.returncode == 0, called.stderr


def test_the_wheels_version_can_be_read_from_the_package(wheel: Path, unpacked: Path) -> None:
    shown = run(sys.executable, "-c", "import postal_digits; print(postal_digits.__version__)", PYTHONPATH=str(unpacked))
    assert shown.stdout.strip() == wheel.name.split("-")[1], shown.stderr


def test_the_wheel_and_the_service_can_be_imported_together(unpacked: Path) -> None:
    code = "import serving.pb.digits.v1.digit_service_pb2, postal_digits, serving.client; print('imported')"
    called = run(sys.executable, "-c", code, PYTHONPATH=f"{unpacked}{os.pathsep}{ROOT}")
    assert called.stdout.strip() == "imported", called.stderr


def test_the_client_and_tritonclient_call_the_service_from_one_process(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if run(*pip, "index", "versions", "tritonclient").returncode:
        pytest.skip("needs a package index with tritonclient, and pip can't reach one")
    python = tmp_path / "venv" / "bin" / "python"
    assert run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv").returncode == 0
    installed = run(*pip, "--python", python, "install", "--quiet", CLIENT, "tritonclient[grpc]")
    assert installed.returncode == 0, installed.stderr
    with service("--workers", "1") as server:
        called = run(python, "-c", CALL + CALL_WITH_TRITON, server.address, SAMPLES / "7.png")
    assert called.returncode == 0, called.stderr
