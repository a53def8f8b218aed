import datetime
import ipaddress
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from serving.client import CredentialsError as ClientCredentialsError
from serving.client import channel_credentials
from serving.client.pem import NotYetValid
from serving.security import credential_files
from serving.security.credential_files import CredentialsError
from serving.telemetry.metrics import Metrics
from tests.security.conftest import settle
from tests.support.credentials import Files, chain, issue, key
from tests.support.metrics import value

FAILURES = "digits_credentials_reload_failures_total"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def write_own(files: Files, private, *, begin=NOW - DAY, end=NOW + DAY, usage=None, names=("localhost",), common=()) -> None:  # type: ignore[no-untyped-def]
    """Writes a certificate that is its own authority."""
    subject = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "tests"),
            *(x509.NameAttribute(x509.NameOID.COMMON_NAME, name) for name in common),
        ]
    )
    builder = x509.CertificateBuilder(subject, subject, private.public_key(), x509.random_serial_number(), begin, end)
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(n) if isinstance(n, str) else n for n in names])
        builder = builder.add_extension(alternatives, critical=False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    algorithm = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    files.certificate.write_bytes(builder.sign(private, algorithm).public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


GOOD: dict[str, Callable[[Files], None]] = {
    "P-256": lambda files: write_own(files, ec.generate_private_key(ec.SECP256R1())),
    "P-384": lambda files: write_own(files, ec.generate_private_key(ec.SECP384R1())),
    "RSA": lambda files: write_own(files, rsa.generate_private_key(65537, 2048)),
    "a wildcard": lambda files: write_own(files, ec.generate_private_key(ec.SECP256R1()), names=("*.example",)),
}
URI = x509.UniformResourceIdentifier("spiffe://example/digits")
EMAIL = x509.RFC822Name("digits@example")
DIRECTORY = x509.DirectoryName(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "digits")]))
IPV4, IPV6 = (x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "2001:db8::1"))
for names in ((URI, "localhost"), (EMAIL, "localhost"), (DIRECTORY, IPV4), (IPV6, "localhost"), (IPV6,), (URI,)):
    GOOD[", ".join(str(name) for name in names)] = lambda files, names=names: write_own(  # type: ignore[misc]
        files, ec.generate_private_key(ec.SECP256R1()), names=names
    )
GOOD["a common name beside an address of mail"] = lambda files: write_own(
    files, ec.generate_private_key(ec.SECP256R1()), names=(EMAIL,), common=("localhost",)
)
BAD: dict[str, Callable[[Files], None]] = {
    "a short key": lambda files: write_own(files, rsa.generate_private_key(65537, 1024)),  # noqa: S505
    "a curve of no client": lambda files: write_own(files, ec.generate_private_key(ec.SECP256K1())),
    "a curve that gRPC lacks": lambda files: write_own(files, ec.generate_private_key(ec.SECP224R1())),
    "a key that gRPC lacks": lambda files: write_own(files, ed25519.Ed25519PrivateKey.generate()),
    "a certificate of a client": lambda files: write_own(
        files, ec.generate_private_key(ec.SECP256R1()), usage=ExtendedKeyUsageOID.CLIENT_AUTH
    ),
    "an address of mail only": lambda files: write_own(files, ec.generate_private_key(ec.SECP256R1()), names=(EMAIL,)),
    "a URI with a key that gRPC lacks": lambda files: write_own(files, ed25519.Ed25519PrivateKey.generate(), names=(URI,)),
    "no name": lambda files: write_own(files, ec.generate_private_key(ec.SECP256R1()), names=()),
    "the future": lambda files: write_own(
        files, ec.generate_private_key(ec.SECP256R1()), begin=NOW + DAY, end=NOW + 2 * DAY
    ),
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_pair_that_clients_can_use_is_taken_up(files: Files, metrics: Metrics, authority: trustme.CA, kind: str) -> None:
    files.put(issue(authority), authority)
    tls = files.open(metrics, mutual=False)
    before = tls.context()
    GOOD[kind](files)
    settle(tls)
    assert tls.context() is not before
    assert value(metrics.registry, FAILURES, kind="tls") == 0


@pytest.mark.parametrize("kind", BAD)
def test_a_pair_that_no_client_can_use_is_refused(
    files: Files, metrics: Metrics, authority: trustme.CA, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    files.put(issue(authority), authority)
    tls = files.open(metrics, mutual=False)
    before = tls.context()
    BAD[kind](files)
    settle(tls)
    settle(tls)
    assert tls.context() is before
    assert value(metrics.registry, FAILURES, kind="tls") > 1
    assert caplog.text.count("the previous content stays in use") == 1
    with pytest.raises(CredentialsError):
        files.open(Metrics(), mutual=False)


def test_a_certificate_that_is_not_yet_valid_waits_for_its_time(
    files: Files, metrics: Metrics, authority: trustme.CA
) -> None:
    files.put(issue(authority), authority)
    tls = files.open(metrics, mutual=False)
    before = tls.context()
    begin = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3)
    write_own(files, ec.generate_private_key(ec.SECP256R1()), begin=begin)
    settle(tls)
    assert tls.context() is before
    while datetime.datetime.now(datetime.UTC) < begin + datetime.timedelta(seconds=1.5):
        tls.poll()
    assert tls.context() is not before


def test_a_client_certificate_that_is_not_yet_valid_is_tried_again(files: Files, authority: trustme.CA) -> None:
    files.put(issue(authority), authority)
    credentials = channel_credentials(files.client_ca, files.certificate, files.key)
    write_own(files, ec.generate_private_key(ec.SECP256R1()), begin=NOW + DAY, end=NOW + 2 * DAY)
    for _ in range(2):
        with pytest.raises(NotYetValid, match="is not valid before"):
            credentials.renewed()
    own = issue(authority)
    files.certificate.write_bytes(chain(own))
    with pytest.raises(ClientCredentialsError, match="is not the key of"):
        credentials.renewed()
    assert credentials.renewed() is None
    files.key.write_bytes(key(own))
    assert credentials.renewed() is not None


def test_a_pipe_or_an_endless_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(CredentialsError):
            credential_files.read(path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(CredentialsError, match="larger than 4194304 bytes"):
        credential_files.read(tmp_path / "large")
