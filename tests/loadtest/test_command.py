import asyncio
import itertools
import json
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from serving.cli.main import main
from serving.pb.digits.v1 import digit_service_pb2 as pb
from tests.support.credentials import TOKEN, Files, entry, issue
from tests.support.load import answering, load, right
from tests.support.service import service


def test_the_command_prints_a_table_and_exits_by_the_objectives(server_address: str, tmp_path: Path) -> None:
    written = tmp_path / "numbers.json"
    ran = load(server_address, "--rate", "40", "--slo", "p99=30s,errors=0", "--json", str(written))
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr or "sent" in ran.stderr  # on a busy machine the sender itself may be reported as slow
    assert re.search(r"^\| 40 a second \| .* \| - \| 0 \|$", ran.stdout, re.MULTILINE)
    found = json.loads(written.read_text())
    assert found["codes"] == {"OK": found["calls"]}
    assert found["milliseconds"]["p50"] <= found["milliseconds"]["p99"] <= found["milliseconds"]["max"]
    assert (found["address"], found["missed"]) == (server_address, [])
    assert (found["windows"], found["late_windows"], found["discarded"]) == (10, 0, 0)


async def test_a_missed_objective_ends_with_status_3() -> None:
    async def refuse_every_other(request: pb.RecognizeRequest, context: Any) -> pb.RecognizeResponse:
        if next(calls) % 2:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return right(request)

    calls = itertools.count()
    async with answering(refuse_every_other) as target:
        ran = await asyncio.to_thread(load, target.address, "--callers", "2", "--slo", "p99=60s,errors=0")
    assert ran.returncode == 3
    assert re.search(r"^missed: errors=0%, is [\d.]+%$", ran.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--find-knee"], "--find-knee needs --slo"),
        (["--find-knee", "--slo", "errors=1%", "--callers", "3"], "takes no --callers"),
        (["--rate", "5", "--callers", "3"], "not allowed with"),
        (["--png", "x.png"], "--png needs --find-knee"),
        (["--json", "."], "is a directory"),
        (["--timeout", "0"], "--timeout must be a number above 0"),
        (["--processes", "1001"], "--processes must be at most 1,000"),
        (["--images", "3"], "--rpc recognize takes one image per call"),
        (["--slo", "fast"], "'fast' is not an objective"),
        (["--rate", "0"], "must be a number above 0"),
        (["--arrivals", "fixed"], "--arrivals needs an open loop"),
        (["--callers", "many"], "must be a whole number"),
        (["--json", "/nowhere/x.json"], "/nowhere is not a directory"),
        (["--protocol", "connect", "--rpc", "stream"], "--rpc stream needs --protocol grpc"),
        (["--protocol", "connect", "--address", "dns:///digits:8001"], "needs an --address of the form host:port"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--tls-key", "x"], "--tls-certificate and --tls-key are needed together"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["loadtest", *flags])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["grpc", "connect"])
def test_client_certificate_and_token_are_sent(protocol: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    files = Files(tmp_path)
    files.put(issue(authority), authority)
    tokens, token = tmp_path / "tokens.toml", tmp_path / "token"
    tokens.write_text(entry("tester"))
    token.write_text(TOKEN)
    tls = ["--tls-certificate", str(files.certificate), "--tls-key", str(files.key)]
    with service(*tls, "--tls-client-ca", str(files.client_ca), "--tokens", str(tokens)) as started:
        flags = ["--protocol", protocol, "--callers", "1", *tls, "--tls-ca", str(files.client_ca)]
        assert load(started.address, *flags, "--token-file", str(token)).returncode == 0
        ran = load(started.address, *flags)
    assert ran.returncode == 1
    assert "answers a first call with UNAUTHENTICATED: no valid token" in ran.stderr
