import asyncio
import contextlib
import logging
import os
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.api import digits, open_inference
from serving.client import DigitClient
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.pb.inference import open_inference_pb2 as oip
from serving.security.credential_files import CredentialsError
from serving.security.tls import TLS, channel_credentials
from serving.telemetry.metrics import Metrics
from tests.conftest import TIMEOUT, StartServer, value
from tests.support.credentials import TOKEN, Files, bearer, chain, entry, issue, key, root, trusting
from tests.support.drawn_digits import SAMPLES, draw
from tests.support.service import DIGITS, Service, refused, service

EXPIRY = "digits_tls_certificate_expiry_timestamp_seconds"
FAILURES = "digits_credentials_reload_failures_total"


def settle(tls: TLS) -> None:
    """Looks at the files as often as a change takes to count."""
    while not tls._files.poll():
        pass


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    files = Files(tmp_path)
    files.put(issue(authority), authority)
    return files


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_the_expiry_of_the_certificate_is_in_the_metrics(files: Files, metrics: Metrics, authority: trustme.CA) -> None:
    for years in (1, 40):  # RFC 5280 writes years from 2050 on in another form
        certificate = issue(authority, days=365 * years)
        files.put(certificate, authority)
        files.open(metrics)
        peer = ssl.create_default_context(cadata=root(authority).decode())
        assert value(metrics.registry, EXPIRY) == pytest.approx(_not_after(certificate, peer), abs=1)


def _not_after(certificate: trustme.LeafCert, peer: ssl.SSLContext) -> float:
    """When a certificate expires, as a client learns it in a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = peer.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    found = client.getpeercert()
    assert found
    return float(ssl.cert_time_to_seconds(str(found["notAfter"])))


def encrypted(certificate: trustme.LeafCert) -> bytes:
    loaded = serialization.load_pem_private_key(key(certificate), None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"secret"),
    )


def broken(files: Files, authority: trustme.CA, how: str) -> str:
    """Breaks the files in some way; returns what is to be said of it."""
    certificate = issue(authority)
    match how:
        case "the certificate is another's":
            files.certificate.write_bytes(chain(certificate))
            return "tls.key is not the key of"
        case "the key is another's":
            files.key.write_bytes(key(certificate))
            return "tls.key is not the key of"
        case "the certificate is cut off":
            files.certificate.write_bytes(files.certificate.read_bytes()[:-200])
            return "tls.crt holds no complete PEM block CERTIFICATE"
        case "the key is cut off":
            files.key.write_bytes(files.key.read_bytes()[:100])
            return "tls.key holds no complete PEM block PRIVATE KEY"
        case "the key is empty":
            files.key.write_bytes(b"")
            return "tls.key holds no complete PEM block PRIVATE KEY"
        case "the key is encrypted":
            files.certificate.write_bytes(chain(certificate))
            files.key.write_bytes(encrypted(certificate))
            return "tls.key is encrypted"
        case "the second authority is cut off":
            files.client_ca.write_bytes(files.client_ca.read_bytes() + files.client_ca.read_bytes()[:300])
            return "ca.crt holds no complete PEM block CERTIFICATE"
        case "the authority is damaged":
            files.client_ca.write_bytes(files.client_ca.read_bytes().replace(b"MII", b"AAA", 1))
            return "ca.crt cannot be used"
        case "the certificate is damaged":
            files.certificate.write_bytes(files.certificate.read_bytes().replace(b"MII", b"AAA", 1))
            return "tls.crt with .* cannot be used"
        case "certificate and key have changed places":
            content = files.certificate.read_bytes()
            files.certificate.write_bytes(files.key.read_bytes())
            files.key.write_bytes(content)
            return "tls.crt holds no complete PEM block CERTIFICATE"
        case "the certificate has expired":
            files.put(issue(authority, days=-1), authority)
            return "tls.crt has expired on"
        case "the key is gone":
            files.key.unlink()
            return "tls.key cannot be read: No such file or directory"
    raise AssertionError(how)


BREAKS = [
    *("the certificate is another's", "the key is another's", "the certificate is cut off", "the key is cut off"),
    *("the key is empty", "the key is encrypted", "the second authority is cut off", "the authority is damaged"),
    *("the certificate is damaged", "certificate and key have changed places", "the certificate has expired"),
    "the key is gone",
]


@pytest.mark.parametrize("how", BREAKS)
def test_files_that_cannot_be_used_are_refused_by_name(
    files: Files, metrics: Metrics, authority: trustme.CA, how: str
) -> None:
    told = broken(files, authority, how)
    with pytest.raises(CredentialsError, match=told) as refusal:
        files.open(metrics)
    assert str(files.directory) in str(refusal.value)


async def call(port: int, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """How a call to a server's health ends, on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{port}"
    channel = (
        grpc.aio.secure_channel(address, credentials, options)
        if credentials
        else grpc.aio.insecure_channel(address, options)
    )
    async with channel:
        return await check(channel)


async def check(channel: grpc.aio.Channel) -> grpc.StatusCode:
    try:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


Listen = Callable[[TLS], Awaitable[int]]


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """Starts gRPC servers with nothing but health on them."""
    servers = []

    async def start(tls: TLS) -> int:
        server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
        port = server.add_secure_port("127.0.0.1:0", tls.server_credentials())
        await server.start()
        servers.append(server)
        return port

    yield start
    for server in servers:
        await server.stop(0)


async def test_certificate_and_authority_are_changed_under_a_connection_that_stays_open(
    files: Files, metrics: Metrics, authority: trustme.CA, other: trustme.CA, listen: Listen
) -> None:
    tls = files.open(metrics)
    port = await listen(tls)
    before, after = trusting(authority, issue(authority)), trusting(other, issue(other))
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", before, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        assert await check(channel) is grpc.StatusCode.OK
        assert await call(port, after) is grpc.StatusCode.UNAVAILABLE
        files.put(issue(other, days=90), other)
        settle(tls)
        assert await call(port, after) is grpc.StatusCode.OK
        assert await call(port, before) is grpc.StatusCode.UNAVAILABLE
        assert await check(channel) is grpc.StatusCode.OK, "a connection that is open stays open"
    files.put(issue(authority), authority)
    settle(tls)
    assert await call(port, before) is grpc.StatusCode.OK, "and again, as often as they change"


@pytest.mark.parametrize("how", BREAKS)
async def test_files_that_break_while_they_are_in_use_change_nothing_and_are_logged_once(
    files: Files,
    metrics: Metrics,
    authority: trustme.CA,
    other: trustme.CA,
    listen: Listen,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    caplog.set_level(logging.INFO, "serving")
    tls = files.open(metrics)
    port = await listen(tls)
    told = broken(files, authority, how)
    expiry = value(metrics.registry, EXPIRY)
    for _ in range(3):
        settle(tls)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.text.count("going on with what was read before") == 1
    assert told.split(" ")[0] in caplog.text
    assert value(metrics.registry, FAILURES, kind="tls") == 3
    assert value(metrics.registry, EXPIRY) == expiry
    assert await call(port, trusting(authority, issue(authority))) is grpc.StatusCode.OK
    files.put(issue(other), other)
    settle(tls)
    assert await call(port, trusting(other, issue(other))) is grpc.StatusCode.OK, "mended files are taken up"


# The matrix: every way to connect, with every token, for every kind of method.

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
    """How a call of each method is to end."""
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
    """A server of its own process that asks for mutual TLS and tokens."""
    files = Files(tmp_path_factory.mktemp("protected"))
    files.put(issue(authority), authority)
    tokens = files.directory / "tokens.toml"
    tokens.write_text(entry("sorter-7", roles='"recognize", "admin"') + entry("desk", "keying", '"truth"'))
    flags = ["--tls-certificate", files.certificate, "--tls-key", files.key, "--tls-client-ca", files.client_ca]
    with service(*map(str, flags), "--tokens", str(tokens), "--model-control", "true") as started:
        yield started


@contextlib.contextmanager
def connected(address: str, how: str, authority: trustme.CA, other: trustme.CA) -> Iterator[grpc.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    if how == "no TLS":
        channel = grpc.insecure_channel(address, options)
    else:
        credentials = {
            "wrong CA": lambda: trusting(other, issue(authority)),
            "expired certificate": lambda: trusting(authority, issue(authority, days=-1)),
            "no certificate": lambda: trusting(authority),
            "certificate of another CA": lambda: trusting(authority, issue(other)),
            "right": lambda: trusting(authority, issue(authority)),
        }
        channel = grpc.secure_channel(address, credentials[how](), options)
    with channel:
        yield channel


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_every_wrong_credential_is_refused_with_the_right_code_and_every_right_one_is_served(
    protected: Service, authority: trustme.CA, other: trustme.CA, connection: str, token: str
) -> None:
    found, told = {}, {}
    with connected(protected.address, connection, authority, other) as channel:
        for name, (path, request) in METHODS.items():
            method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
            try:
                method(request, timeout=TIMEOUT, metadata=TOKENS[token])
                found[name] = OK
            except grpc.RpcError as error:
                found[name], told[name] = error.code(), error.details()
    assert found == expected(connection, token)
    unauthenticated = {told[name] for name, code in found.items() if code is CODE.UNAUTHENTICATED}
    assert unauthenticated <= {"no valid token: this server asks for metadata `authorization: Bearer TOKEN`"}


def test_the_python_client_and_the_command_show_certificate_and_token(
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
    assert (ended.returncode, ended.stderr) == (1, f"digits recognize: {token} is no token: that is one line of ASCII\n")


def test_without_client_authorities_no_certificate_is_asked_for(files: Files, authority: trustme.CA) -> None:
    with (
        service("--tls-certificate", str(files.certificate), "--tls-key", str(files.key)) as started,
        DigitClient(started.address, TIMEOUT, channel_credentials(files.client_ca)) as client,
    ):
        assert client.recognize(draw(7)).digit == 7
        assert started.scrape(EXPIRY) > time.time()


def test_a_server_does_not_start_on_files_it_cannot_use_and_names_them(files: Files, authority: trustme.CA) -> None:
    tokens = files.directory / "tokens.toml"
    tokens.write_text("[clients.a]\nroles = []")
    status, complaint = refused("--tokens", tokens)
    assert (status, complaint.count("\n")) == (1, 1)
    assert complaint.startswith(f"digits serve: {tokens}: clients.a.token_sha256: Field required; clients.a.roles:")
    broken(files, authority, "the key is another's")
    status, complaint = refused("--tls-certificate", files.certificate, "--tls-key", files.key)
    assert (status, complaint) == (1, f"digits serve: {files.key} is not the key of {files.certificate}\n")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--tls-certificate", "a"], "--tls-key is not set"),
        (["--tls-key", "a"], "--tls-certificate is not set"),
        (["--tls-client-ca", "a"], "--tls-client-ca is set without --tls-certificate"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(flags: list[str], told: str) -> None:
    status, complaint = refused(*flags)
    assert status == 2
    assert told in complaint


async def test_a_server_takes_up_changed_files_by_itself(
    start_server: StartServer, files: Files, authority: trustme.CA, other: trustme.CA
) -> None:
    server = await start_server(
        tls_certificate=files.certificate, tls_key=files.key, tls_client_ca=files.client_ca, poll_seconds=0.05
    )
    assert await call(server.grpc_port, trusting(authority, issue(authority))) is OK
    files.put(issue(other), other)
    async with asyncio.timeout(TIMEOUT):
        while await call(server.grpc_port, trusting(other, issue(other))) is not OK:
            await asyncio.sleep(0.05)
    assert await call(server.grpc_port, trusting(authority, issue(authority))) is CODE.UNAVAILABLE


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


async def test_a_client_that_gives_no_sign_of_life_is_cut_off(start_server: StartServer) -> None:
    server = await start_server(keepalive_seconds=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # an empty SETTINGS frame
    async with asyncio.timeout(TIMEOUT):
        received = await reader.read(-1)  # until the server closes the connection
    assert bytes([0, 0, 8, 6, 0]) in received, "a PING frame, that nobody answered"
    writer.close()


async def test_handshakes_that_fail_leave_no_line_in_the_log(files: Files) -> None:
    with service(
        *("--tls-certificate", str(files.certificate), "--tls-key", str(files.key), "--drain-seconds", "0")
    ) as started:
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*started.address.split(":"))
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            async with asyncio.timeout(TIMEOUT):
                await reader.read(-1)
            writer.close()
        assert await call(int(started.address.split(":")[1]), None) is CODE.UNAVAILABLE
        started.process.terminate()
        _, log = await asyncio.to_thread(started.process.communicate, timeout=TIMEOUT)
    assert [line.split(" INFO ")[1].split(":")[0] for line in log.splitlines()] == [
        "SIGTERM",
        "stopped; calls ended, by status code",
    ]
