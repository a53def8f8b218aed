import datetime
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from serving.client import CredentialsError, DigitClient, channel_credentials
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1 import digit_service_pb2_grpc as stubs
from serving.samples.draw import draw
from tests.support.calls import TIMEOUT
from tests.support.credentials import Files, chain, issue, key, root

SEVEN = draw(7)


class Identifying(stubs.DigitServiceServicer):
    """Answers with the client's certificate as the model version; may hold calls until they are released."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.released = threading.Event()

    def Recognize(self, request: pb.RecognizeRequest, context: grpc.ServicerContext) -> pb.RecognizeResponse:  # noqa: N802
        if request.key == "hold":
            self.held.set()
            assert self.released.wait(TIMEOUT)
        certificates: Any = context.auth_context()["x509_pem_cert"]
        return pb.RecognizeResponse(model_version=certificates[0].decode())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    """The client's own files."""
    own = Files(tmp_path)
    own.put(issue(authority), authority)
    return own


@pytest.fixture
def servicer() -> Identifying:
    return Identifying()


@pytest.fixture
def client(servicer: Identifying, authority: trustme.CA, files: Files) -> Iterator[DigitClient]:
    """A client of a server that requires a client certificate."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    stubs.add_DigitServiceServicer_to_server(servicer, server)
    own = issue(authority)
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([(key(own), chain(own))], root(authority), require_client_auth=True)
    )
    server.start()
    credentials = channel_credentials(files.client_ca, files.certificate, files.key)
    with DigitClient(f"127.0.0.1:{port}", TIMEOUT, credentials) as connected:
        yield connected
    server.stop(None).wait(TIMEOUT)


def shown(client: DigitClient, key: str = "") -> str:
    """The certificate that the client shows, its leaf."""
    return client.recognize(SEVEN, key=key).model_version


def leaf(certificate: trustme.LeafCert) -> str:
    return certificate.cert_chain_pems[0].bytes().decode()


def wait_until_shown(client: DigitClient, certificate: trustme.LeafCert) -> None:
    deadline = time.monotonic() + TIMEOUT
    while shown(client).strip() != leaf(certificate).strip():
        assert time.monotonic() < deadline, "the renewed certificate is not used"
        time.sleep(0.05)


def test_renewed_certificates_are_used_and_calls_in_flight_go_on(
    client: DigitClient, servicer: Identifying, authority: trustme.CA, files: Files
) -> None:
    before = shown(client)
    with futures.ThreadPoolExecutor(1) as threads:
        held = threads.submit(shown, client, key="hold")
        assert servicer.held.wait(TIMEOUT)
        for _ in range(2):  # certificates may be renewed again and again
            renewed = issue(authority)
            files.put(renewed, authority)
            wait_until_shown(client, renewed)
        assert not held.done()
        servicer.released.set()
        assert held.result(TIMEOUT) == before


def test_files_that_can_not_be_used_leave_the_previous_in_use(
    client: DigitClient, authority: trustme.CA, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    before = shown(client)
    renewed = issue(authority)
    files.certificate.write_bytes(chain(renewed))  # the key is still the previous one's
    deadline = time.monotonic() + TIMEOUT
    while "is not the key of" not in caplog.text:
        assert shown(client) == before
        assert time.monotonic() < deadline, "the change went unnoticed"
        time.sleep(0.05)
    files.key.unlink()
    files.key.write_bytes(key(renewed))
    wait_until_shown(client, renewed)


def test_credentials_that_can_not_be_used_are_refused_by_name(files: Files, authority: trustme.CA, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.key"
    stranger.write_bytes(key(issue(authority)))
    with pytest.raises(CredentialsError, match=r"stranger\.key is not the key of .*tls\.crt"):
        channel_credentials(files.client_ca, files.certificate, stranger)
    with pytest.raises(CredentialsError, match=r"none\.crt can't be read"):
        channel_credentials(tmp_path / "none.crt")
    with pytest.raises(CredentialsError, match=r"tls\.key holds no complete PEM block CERTIFICATE"):
        channel_credentials(files.key)
    with pytest.raises(ValueError, match="certificate was given without key"):
        channel_credentials(files.client_ca, files.certificate)
    stranger.write_bytes(files.key.read_bytes()[:200])
    with pytest.raises(CredentialsError, match=r"stranger\.key holds no complete PEM block PRIVATE KEY, or a block"):
        channel_credentials(files.client_ca, files.certificate, stranger)
    files.certificate.write_bytes(files.certificate.read_bytes()[:-200])
    with pytest.raises(CredentialsError, match=r"tls\.crt holds no complete PEM block CERTIFICATE, or a block"):
        channel_credentials(files.client_ca, files.certificate, files.key)
    files.client_ca.write_bytes(files.client_ca.read_bytes() + files.client_ca.read_bytes()[:300])
    with pytest.raises(CredentialsError, match=r"ca\.crt holds no complete PEM block CERTIFICATE, or a block"):
        channel_credentials(files.client_ca)


def test_an_expired_certificate_is_refused_with_its_date(files: Files, authority: trustme.CA) -> None:
    credentials = channel_credentials(files.client_ca, files.certificate, files.key)
    files.put(issue(authority, days=-1), authority)
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    reason = rf"tls\.crt expired on {yesterday:%Y-%m-%d} \d\d:\d\d UTC"
    with pytest.raises(CredentialsError, match=reason):
        channel_credentials(files.client_ca, files.certificate, files.key)
    with pytest.raises(CredentialsError, match=reason):
        credentials.renewed()


def test_credentials_are_read_from_text_paths(files: Files) -> None:
    channel_credentials(str(files.client_ca), str(files.certificate), str(files.key))
