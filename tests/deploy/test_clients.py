"""Clients of other makers call `digits serve` with the front http2: curl, buf curl, Node's @grpc/grpc-js."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.deploy.conftest import Prove
from tests.support.credentials import Files, chain, issue, key
from tests.support.service import ROOT, Service, service

pytestmark = pytest.mark.deploy

ALONE = ("--workers", "1")
RECOGNIZE = "digits.v1.DigitService/Recognize"
SAMPLE = ROOT / "serving" / "samples" / "7.png"
NODE_MODULES = ROOT / "build" / "node" / "node_modules"
BUF = Path(sys.executable).parent / "buf"
INVALID_ARGUMENT = 3 << 3  # exit status of buf curl: the status code of gRPC, shifted by three bits


@pytest.fixture(scope="module")
def plain() -> Iterator[Service]:
    with service(*ALONE) as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """TLS files of a server, and in the same directory those of a client."""
    authority = trustme.CA()
    files = Files(tmp_path_factory.mktemp("tls"))
    files.put(issue(authority), authority)
    client = authority.issue_cert("sorter-7")
    (files.directory / "client.crt").write_bytes(chain(client))
    (files.directory / "client.key").write_bytes(key(client))
    return files


@pytest.fixture(scope="module")
def mutual(files: Files) -> Iterator[Service]:
    flags = ["--tls-certificate", files.certificate, "--tls-key", files.key, "--tls-client-ca", files.client_ca]
    with service(*ALONE, *map(str, flags)) as started:
        yield started


@pytest.fixture(scope="module")
def request_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A request in JSON, as README.md writes it."""
    file = tmp_path_factory.mktemp("request") / "request.json"
    subprocess.run(["sh", "-c", f'echo "{{\\"crop\\": \\"$(base64 -w0 {SAMPLE})\\"}}" > {file}'], check=True)
    return file


def run(*command: str | Path, status: int = 0, **environment: str) -> str:
    """Runs a program that must end with an exit status; returns its output."""
    if not shutil.which(command[0]):
        pytest.skip(f"needs {command[0]}")
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )
    assert ended.returncode == status, ended.stderr
    return ended.stdout or ended.stderr


def tls(files: Files, *names: str) -> list[str | Path]:
    """Returns the flags, of these names, for authority, certificate and key of a client."""
    values = (files.client_ca, files.directory / "client.crt", files.directory / "client.key")
    return [part for name, file in zip(names, values, strict=True) for part in (name, file)]


def test_curl_reads_a_digit_plain_and_over_mutual_tls(
    plain: Service, mutual: Service, files: Files, request_file: Path, prove: Prove
) -> None:
    call = ["curl", "-sS", "--json", f"@{request_file}"]
    answers = [
        run(*call, "--http2-prior-knowledge", f"http://{plain.address}/{RECOGNIZE}"),
        run(*call, *tls(files, "--cacert", "--cert", "--key"), f"https://{mutual.address}/{RECOGNIZE}"),
    ]
    assert [json.loads(answer)["digit"] for answer in answers] == [7, 7]
    prove(run("curl", "--version").split(" lib")[0])


# Not Connect with reflection: buf curl then asks by streams of Connect, which the service does not have.
@pytest.mark.parametrize(
    ("protocol", "schema"),
    [("grpc", "reflection"), ("grpcweb", "reflection"), ("grpc", "protos"), ("grpcweb", "protos"), ("connect", "protos")],
)
def test_buf_curl_reads_a_digit_in_every_protocol(
    plain: Service, request_file: Path, protocol: str, schema: str, prove: Prove
) -> None:
    source = ["--schema", ROOT / "protos"] if schema == "protos" else ["--reflect"]
    call = [BUF, "curl", "--http2-prior-knowledge", "--protocol", protocol, *source]
    answer = run(*call, "--data", f"@{request_file}", f"http://{plain.address}/{RECOGNIZE}")
    assert json.loads(answer)["digit"] == 7
    refused = run(*call, "--data", "{}", f"http://{plain.address}/{RECOGNIZE}", status=INVALID_ARGUMENT)
    assert json.loads(refused)["code"] == "invalid_argument"
    prove(f"buf {run(BUF, '--version').strip()}, {protocol}, schema from {schema}")


def test_buf_curl_lists_the_methods_and_calls_over_mutual_tls(
    plain: Service, mutual: Service, files: Files, request_file: Path
) -> None:
    listed = run(BUF, "curl", "--http2-prior-knowledge", "--protocol", "grpc", "--list-methods", f"http://{plain.address}")
    assert {RECOGNIZE, "inference.GRPCInferenceService/ModelInfer"} <= set(listed.split())
    call = [BUF, "curl", "--schema", ROOT / "protos", *tls(files, "--cacert", "--cert", "--key")]
    for protocol in ("grpc", "grpcweb", "connect"):
        data = ["--protocol", protocol, "--data", f"@{request_file}"]
        assert json.loads(run(*call, *data, f"https://{mutual.address}/{RECOGNIZE}"))["digit"] == 7


@pytest.mark.parametrize("encrypted", [False, True])
def test_nodes_grpc_client_calls_streams_and_gets_errors(
    plain: Service, mutual: Service, files: Files, encrypted: bool, prove: Prove
) -> None:
    if not NODE_MODULES.is_dir():
        pytest.skip("needs Node's @grpc/grpc-js: make node-client")
    program = Path(__file__).parent / "node" / "call.js"
    pem = [files.client_ca, files.directory / "client.key", files.directory / "client.crt"] if encrypted else []
    address = (mutual if encrypted else plain).address
    outcomes: dict[str, Any] = json.loads(run("node", program, address, SAMPLE, *pem, NODE_PATH=str(NODE_MODULES)))
    assert outcomes["unary"] == {"digit": 7}
    assert outcomes["refused"]["code"] == "NOT_FOUND"
    assert "ä%" in outcomes["refused"]["details"]
    assert outcomes["together"] == 200
    assert outcomes["stream"] == [7] * 50
    assert outcomes["blanks"] == [[3, "DECISION_REJECT_INVALID_IMAGE"]]
    assert outcomes["tensors"] == [["piece 7", "digits", 3, 3, ["triton_final_response"]]]
    assert outcomes["late"]["code"] == "DEADLINE_EXCEEDED"
    version = json.loads((NODE_MODULES / "@grpc" / "grpc-js" / "package.json").read_text())["version"]
    prove(f"Node {run('node', '--version').strip()}, @grpc/grpc-js {version}{', mutual TLS' if encrypted else ''}")
