import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.api import digits, open_inference
from serving.client import DigitClient, channel_credentials
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.pb.inference import open_inference_pb2 as oip
from serving.samples.draw import SAMPLES, draw
from tests.security.handshake import OWN_CONNECTION, health_code
from tests.support.calls import TIMEOUT
from tests.support.credentials import TOKEN, Files, bearer, entry, issue, trusting
from tests.support.servers import StartServer
from tests.support.service import DIGITS, Service, service

EXPIRY = "digits_tls_certificate_expiry_timestamp_seconds"
OK = grpc.StatusCode.OK
CODE = grpc.StatusCode
METHODS: dict[str, tuple[str, bytes]] = {
    "Recognize": (f"/{digits.NAME}/Recognize", pb.RecognizeRequest(image=bytes(784)).SerializeToString()),
    "RecognizeBatch": (
        f"/{digits.NAME}/RecognizeBatch",
        pb.RecognizeBatchRequest(images=bytes(2 * 784)).SerializeToString(),
    ),
    "Load": (
        f"/{open_inference.NAME}/RepositoryModelLoad",
        oip.RepositoryModelLoadRequest(model_name="digits").SerializeToString(),
    ),
    "reflection": (
        f"/{reflection.SERVICE_NAME}/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString(),
    ),
    "unknown": ("/digits.v1.DigitService/Forget", b""),
    "health": ("/grpc.health.v1.Health/Check", b""),
}
CONNECTIONS = ["no TLS", "wrong CA", "expired certificate", "no certificate", "certificate of another CA", "right"]
TOKENS = {
    "none": (),
    "garbled": (("authorization", f"Bearer{TOKEN}"),),
    "wrong": bearer(TOKEN + "x"),
    "wrong role": bearer("keying"),
    "right": bearer(TOKEN),
}


def expected(connection: str, token: str) -> dict[str, grpc.StatusCode]:
    """Returns the expected status code of each method."""
    if connection != "right":
        return dict.fromkeys(METHODS, CODE.UNAVAILABLE)
    right = {**dict.fromkeys(METHODS, OK), "unknown": CODE.UNIMPLEMENTED}
    if token == "right":  # noqa: S105
        return right
    if token == "wrong role":  # noqa: S105
        return right | dict.fromkeys(["Recognize", "RecognizeBatch", "Load"], CODE.PERMISSION_DENIED)
    return {**dict.fromkeys(METHODS, CODE.UNAUTHENTICATED), "health": OK}


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Service]:
    """A server process that requires mutual TLS and tokens."""
    files = Files(tmp_path_factory.mktemp("protected"))
    files.put(issue(authority), authority)
    tokens = files.directory / "tokens.toml"
    tokens.write_text(entry("sorter-7", roles='"recognize", "admin"') + entry("desk", "keying", '"truth"'))
    flags = ["--tls-certificate", files.certificate, "--tls-key", files.key, "--tls-client-ca", files.client_ca]
    with service(*map(str, flags), "--tokens", str(tokens), "--model-control", "true") as started:
        yield started


@contextlib.contextmanager
def connect(address: str, connection: str, authority: trustme.CA, other: trustme.CA) -> Iterator[grpc.Channel]:
    if connection == "no TLS":
        channel = grpc.insecure_channel(address, OWN_CONNECTION)
    else:
        credentials = {
            "wrong CA": lambda: trusting(other, issue(authority)),
            "expired certificate": lambda: trusting(authority, issue(authority, days=-1)),
            "no certificate": lambda: trusting(authority),
            "certificate of another CA": lambda: trusting(authority, issue(other)),
            "right": lambda: trusting(authority, issue(authority)),
        }
        channel = grpc.secure_channel(address, credentials[connection](), OWN_CONNECTION)
    with channel:
        yield channel


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_each_connection_token_and_method_ends_with_its_status_code(
    protected: Service, authority: trustme.CA, other: trustme.CA, connection: str, token: str
) -> None:
    codes, details = {}, {}
    with connect(protected.address, connection, authority, other) as channel:
        for name, (path, request) in METHODS.items():
            method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
            try:
                method(request, timeout=TIMEOUT, metadata=TOKENS[token])
                codes[name] = OK
            except grpc.RpcError as error:
                codes[name], details[name] = error.code(), error.details()
    assert codes == expected(connection, token)
    unauthenticated = {details[name] for name, code in codes.items() if code is CODE.UNAUTHENTICATED}
    assert unauthenticated <= {"no valid token: this server asks for metadata `authorization: Bearer TOKEN`"}


def test_python_client_and_command_line_send_certificate_and_token(
    protected: Service, authority: trustme.CA, tmp_path: Path
) -> None:
    own = Files(tmp_path)
    own.put(issue(authority), authority)
    credentials = channel_credentials(own.client_ca, own.certificate, own.key)
    with DigitClient(protected.address, TIMEOUT, credentials, TOKEN) as client:
        assert client.recognize(draw(7)).digit == 7
        assert client.recognize_batch(draw(7)[None])[0].digit == 7
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    tls = ["--tls-ca", own.client_ca, "--tls-certificate", own.certificate, "--tls-key", own.key]
    command = [*DIGITS, "recognize", "--address", protected.address, *map(str, tls), str(SAMPLES / "7.png")]

    def run(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **environment}
        return subprocess.run([*command, *flags], capture_output=True, text=True, timeout=TIMEOUT, env=environment)

    assert "  7  " in run("--token-file", str(token)).stdout
    assert "  7  " in run(DIGITS_TOKEN=TOKEN).stdout
    ended = run()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "UNAUTHENTICATED: no valid token" in ended.stderr
    token.write_bytes(b"\xff\x00")
    ended = run("--token-file", str(token))
    assert (ended.returncode, ended.stderr) == (1, f"digits recognize: {token} is not a token, expected one line of ASCII\n")


def test_without_client_authorities_no_certificate_is_asked_for(files: Files, authority: trustme.CA) -> None:
    with (
        service("--tls-certificate", str(files.certificate), "--tls-key", str(files.key)) as started,
        DigitClient(started.address, TIMEOUT, channel_credentials(files.client_ca)) as client,
    ):
        assert client.recognize(draw(7)).digit == 7
        assert started.scrape(EXPIRY) > time.time()


async def test_a_server_reloads_changed_files(
    start_server: StartServer, files: Files, authority: trustme.CA, other: trustme.CA
) -> None:
    server = await start_server(
        tls_certificate=files.certificate, tls_key=files.key, tls_client_ca=files.client_ca, poll_seconds=0.05
    )
    assert await health_code(server.grpc_port, trusting(authority, issue(authority))) is OK
    files.put(issue(other), other)
    async with asyncio.timeout(TIMEOUT):
        while await health_code(server.grpc_port, trusting(other, issue(other))) is not OK:
            await asyncio.sleep(0.05)
    assert await health_code(server.grpc_port, trusting(authority, issue(authority))) is CODE.UNAVAILABLE


async def test_a_connection_past_its_age_closes_and_no_call_is_lost(
    start_server: StartServer, files: Files, authority: trustme.CA
) -> None:
    server = await start_server(
        tls_certificate=files.certificate,
        tls_key=files.key,
        max_connection_age_seconds=0.2,
        max_connection_age_grace_seconds=10,
    )
    address = f"127.0.0.1:{server.grpc_port}"
    async with grpc.aio.secure_channel(address, trusting(authority)) as channel:
        connections = 0

        async def count_connections() -> None:
            nonlocal connections
            state = channel.get_state(try_to_connect=True)
            while True:
                connections += state is grpc.ChannelConnectivity.READY
                await channel.wait_for_state_change(state)
                state = channel.get_state()

        counting = asyncio.create_task(count_connections())

        async def call_on() -> int:
            calls = 0
            while connections < 5:
                request = pb.RecognizeRequest(image=bytes(784))
                await DigitServiceStub(channel).Recognize(request, timeout=TIMEOUT)
                calls += 1
            return calls

        async with asyncio.timeout(TIMEOUT):
            assert min(await asyncio.gather(*(call_on() for _ in range(8)))) > 0
        counting.cancel()
        await asyncio.gather(counting, return_exceptions=True)


async def test_a_client_that_does_not_answer_pings_is_disconnected(start_server: StartServer) -> None:
    server = await start_server(keepalive_seconds=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # an empty SETTINGS frame
    async with asyncio.timeout(TIMEOUT):
        received = await reader.read(-1)  # until the server closes the connection
    assert bytes([0, 0, 8, 6, 0]) in received, "a PING frame, left unanswered"
    writer.close()


async def test_failed_handshakes_leave_no_line_in_the_log(files: Files) -> None:
    with service(
        *("--tls-certificate", str(files.certificate), "--tls-key", str(files.key), "--drain-seconds", "0")
    ) as started:
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*started.address.split(":"))
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            async with asyncio.timeout(TIMEOUT):
                await reader.read(-1)
            writer.close()
        assert await health_code(int(started.address.split(":")[1]), None) is CODE.UNAVAILABLE
        started.process.terminate()
        _, log = await asyncio.to_thread(started.process.communicate, timeout=TIMEOUT)
    assert [line.split(" INFO ")[1].split(":")[0] for line in log.splitlines()] == [
        "SIGTERM",
        "stopped; calls ended, by status code",
    ]
