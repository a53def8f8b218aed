import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import channel
from tests.support.service import service

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "protos" / "README.md"
PROTOC = ROOT / "build" / "protoc-venv" / "bin"


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of a section of the page, in one language."""
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a real server."""
    with service("--workers", "1") as server:
        yield server.address


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory where the examples find what they name."""
    for name in ("protos", "serving"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(code: str, checkout: Path, address: str, *command: str | Path, **environment: str) -> str:
    """Runs an example as printed, but for the server's address; returns its output."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [*map(str, command), "-c", code.replace("127.0.0.1:8001", address)],
        cwd=checkout,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_example_of_curl_reads_the_sample(checkout: Path, address: str) -> None:
    [example] = [block for block in blocks("From a shell", "sh") if "--json" in block]
    answer = json.loads(run(example, checkout, address, "sh", "-e"))
    assert (answer["digit"], answer["decision"]) == (7, "DECISION_ACCEPT")


def test_the_example_of_buf_curl_reads_the_sample(checkout: Path, address: str) -> None:
    [example] = [block for block in blocks("From a shell", "sh") if "buf curl" in block]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    answer = json.loads(run(example, checkout, address, "sh", "-e", PATH=path))
    assert (answer["digit"], answer["decision"]) == (7, "DECISION_ACCEPT")


def test_the_python_example_with_generated_stubs_reads_the_sample(checkout: Path, address: str) -> None:
    if not (PROTOC / "python").exists():
        pytest.skip("needs the generator of the stubs: `make lint` installs it into build/protoc-venv")
    [generate] = blocks("Python without the client", "sh")
    run(generate, checkout, address, "sh", "-e", PATH=f"{PROTOC}{os.pathsep}{os.environ['PATH']}")
    call = blocks("Python without the client", "python")[0]
    printed = run(call, checkout, address, PROTOC / "python", PYTHONPATH=str(checkout / "stubs"))
    assert re.fullmatch(r"7 0\.9\d+ DECISION_ACCEPT|7 1\.0000 DECISION_ACCEPT", printed.strip())


def test_the_python_example_with_tritonclient_reads_the_sample(checkout: Path, address: str) -> None:
    call = blocks("Python without the client", "python")[1]
    assert run(call, checkout, address, sys.executable) == "[7]\n"


def test_the_service_config_of_the_page_is_the_clients() -> None:
    [config] = blocks("Retries", "json")
    assert json.loads(config) == channel.SERVICE_CONFIG


def test_the_page_explains_every_status_code_of_the_protos() -> None:
    protos = "".join(file.read_text().split("syntax = ")[0] for file in (ROOT / "protos").rglob("*.proto"))
    codes = set(re.findall(r"^//   ([A-Z_]{6,}) ", protos, re.MULTILINE))
    assert codes <= set(re.findall(r"^\| `([A-Z_]+)`", PAGE.read_text(), re.MULTILINE))
    assert len(codes) == 11
