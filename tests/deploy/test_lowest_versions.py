"""The service and the client with the lowest versions of their requirements that pyproject.toml allows."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.samples.draw import SAMPLES
from tests.deploy.conftest import Prove

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]  # downloads 60 MB

ROOT = Path(__file__).parent.parent.parent
UV = Path(sys.executable).parent / "uv"
OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

CALL = """
import sys
from pathlib import Path
from postal_digits import DigitClient

with DigitClient(sys.argv[1], timeout_seconds=20) as client:
    print(client.recognize(Path(sys.argv[2]).read_bytes()).digit)
"""


def run(*command: str | Path) -> str:
    """Runs a command outside the checkout, and returns its output."""
    ended = subprocess.run([*map(str, command)], cwd="/", env=OUTSIDE, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The programs of an environment with the service and the client, both on their lowest versions."""
    index = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "grpcio"]
    if subprocess.run(index, cwd="/", env=OUTSIDE, capture_output=True, timeout=100).returncode:
        pytest.skip("needs a package index with grpcio, and pip can't reach one")
    # In a copy, because setuptools leaves its build directory behind, and takes stale files from it the next time.
    source = tmp_path / "source"
    shutil.copytree(
        ROOT / "serving", source / "serving", ignore=shutil.ignore_patterns("__pycache__", "*.keras", "report.html")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    lowest = ("--resolution", "lowest-direct", source, source / "serving" / "client")
    run(UV, "pip", "install", "--quiet", "--python", python, *lowest)
    return python.parent


@pytest.fixture
def address(programs: Path) -> Iterator[str]:
    """The address of a server in this environment."""
    command = [str(programs / "digits"), "serve", "--grpc-port", "0", "--metrics-port", "0", "--workers", "1"]
    with subprocess.Popen(command, cwd="/", env=OUTSIDE, stderr=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stderr is not None
        try:
            log = ""
            while not (found := re.search(r"(\S+) for gRPC", log)):
                line = process.stderr.readline()
                assert line, log
                log += line
            yield found[1]
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_service_and_client_run_on_their_lowest_versions(programs: Path, address: str, prove: Prove) -> None:
    assert run(programs / "python", "-c", CALL, address, SAMPLES / "7.png") == "7\n"
    versions = "import google.protobuf, grpc; print(f'protobuf {google.protobuf.__version__}, grpcio {grpc.__version__}')"
    prove(run(programs / "python", "-c", versions).strip())
