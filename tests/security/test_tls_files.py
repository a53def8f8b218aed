import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health, health_pb2_grpc

from serving.security.credential_files import CredentialsError
from serving.security.tls import TLS
from serving.telemetry.metrics import Metrics
from tests.security.conftest import settle
from tests.security.handshake import OWN_CONNECTION, check_health, health_code
from tests.support.credentials import Files, chain, issue, key, root, trusting
from tests.support.metrics import value
from tests.support.service import refused

EXPIRY = "digits_tls_certificate_expiry_timestamp_seconds"
FAILURES = "digits_credentials_reload_failures_total"


def test_the_expiry_of_the_certificate_is_in_the_metrics(files: Files, metrics: Metrics, authority: trustme.CA) -> None:
    for years in (1, 40):  # RFC 5280 encodes dates from 2050 on as GeneralizedTime
        certificate = issue(authority, days=365 * years)
        files.put(certificate, authority)
        files.open(metrics)
        peer = ssl.create_default_context(cadata=root(authority).decode())
        assert value(metrics.registry, EXPIRY) == pytest.approx(not_after(certificate, peer), abs=1)


def not_after(certificate: trustme.LeafCert, peer: ssl.SSLContext) -> float:
    """Returns the expiry of a certificate, as a client reads it in a handshake."""
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


def break_files(files: Files, authority: trustme.CA, fault: str) -> str:
    """Breaks the files in one way; returns the start of the expected error."""
    certificate = issue(authority)
    match fault:
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
            return "tls.crt expired on"
        case "the key is gone":
            files.key.unlink()
            return "tls.key cannot be read: No such file or directory"
    raise AssertionError(fault)


FAULTS = [
    *("the certificate is another's", "the key is another's", "the certificate is cut off", "the key is cut off"),
    *("the key is empty", "the key is encrypted", "the second authority is cut off", "the authority is damaged"),
    *("the certificate is damaged", "certificate and key have changed places", "the certificate has expired"),
    "the key is gone",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_files_are_refused_with_their_path_and_the_reason(
    files: Files, metrics: Metrics, authority: trustme.CA, fault: str
) -> None:
    reason = break_files(files, authority, fault)
    with pytest.raises(CredentialsError, match=reason) as refusal:
        files.open(metrics)
    assert str(files.directory) in str(refusal.value)


Listen = Callable[[TLS], Awaitable[int]]


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """Starts gRPC servers that have only the health service."""
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


async def test_a_reload_serves_new_handshakes_and_keeps_open_connections(
    files: Files, metrics: Metrics, authority: trustme.CA, other: trustme.CA, listen: Listen
) -> None:
    tls = files.open(metrics)
    port = await listen(tls)
    before, after = trusting(authority, issue(authority)), trusting(other, issue(other))
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", before, OWN_CONNECTION) as channel:
        assert await check_health(channel) is grpc.StatusCode.OK
        assert await health_code(port, after) is grpc.StatusCode.UNAVAILABLE
        files.put(issue(other, days=90), other)
        settle(tls)
        assert await health_code(port, after) is grpc.StatusCode.OK
        assert await health_code(port, before) is grpc.StatusCode.UNAVAILABLE
        assert await check_health(channel) is grpc.StatusCode.OK, "an open connection stays open"
    files.put(issue(authority), authority)
    settle(tls)
    assert await health_code(port, before) is grpc.StatusCode.OK, "every later change is applied too"


@pytest.mark.parametrize("fault", FAULTS)
async def test_files_that_break_in_use_are_logged_once_and_not_applied(
    files: Files,
    metrics: Metrics,
    authority: trustme.CA,
    other: trustme.CA,
    listen: Listen,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    caplog.set_level(logging.INFO, "serving")
    tls = files.open(metrics)
    port = await listen(tls)
    reason = break_files(files, authority, fault)
    expiry = value(metrics.registry, EXPIRY)
    for _ in range(3):
        settle(tls)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.text.count("the previous content stays in use") == 1
    assert reason.split(" ")[0] in caplog.text
    assert value(metrics.registry, FAILURES, kind="tls") == 3
    assert value(metrics.registry, EXPIRY) == expiry
    assert await health_code(port, trusting(authority, issue(authority))) is grpc.StatusCode.OK
    files.put(issue(other), other)
    settle(tls)
    assert await health_code(port, trusting(other, issue(other))) is grpc.StatusCode.OK, "repaired files are reloaded"


def test_a_server_does_not_start_with_invalid_files_and_names_them(files: Files, authority: trustme.CA) -> None:
    tokens = files.directory / "tokens.toml"
    tokens.write_text("[clients.a]\nroles = []")
    status, complaint = refused("--tokens", tokens)
    assert (status, complaint.count("\n")) == (1, 1)
    assert complaint.startswith(f"digits serve: {tokens}: clients.a.token_sha256: Field required; clients.a.roles:")
    break_files(files, authority, "the key is another's")
    status, complaint = refused("--tls-certificate", files.certificate, "--tls-key", files.key)
    assert (status, complaint) == (1, f"digits serve: {files.key} is not the key of {files.certificate}\n")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--tls-certificate", "a"], "--tls-key is not set"),
        (["--tls-key", "a"], "--tls-certificate is not set"),
        (["--tls-client-ca", "a"], "--tls-client-ca is set without --tls-certificate"),
    ],
)
def test_contradictory_tls_settings_are_refused(flags: list[str], reason: str) -> None:
    status, complaint = refused(*flags)
    assert status == 2
    assert reason in complaint
