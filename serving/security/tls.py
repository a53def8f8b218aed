"""TLS, and mutual TLS, from PEM files that may be replaced while the server runs."""

import os
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc

from serving.security.credential_files import CredentialFiles, CredentialsError, read
from serving.telemetry.metrics import Metrics

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s.*?-----END \1-----", re.DOTALL)


class TLS:
    """The server's certificate with its key, and, for mutual TLS, the authorities that sign its clients' certificates.

    Connections that are open stay open when the files change; handshakes after that use the new ones.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None, metrics: Metrics):
        """Reads and checks the files.

        Args:
            certificate: the certificate, followed by those that lead from it to an authority that clients know.
            key: the private key of the first one, not encrypted.
            client_ca: authorities, one of which must have signed a client's certificate. None asks clients for none.
            metrics: where the certificate's expiry is shown, and files that can't be used are counted.

        Raises:
            CredentialsError: a file can't be read or used.
        """
        self._paths = [certificate, key, *([client_ca] if client_ca else [])]
        self._metrics = metrics
        self._files = CredentialFiles("tls", self._paths, self._take, metrics)

    def server_credentials(self) -> grpc.ServerCredentials:
        """What a gRPC server listens with; keep it for as long as the server lives."""
        handed_over = self._configuration

        def changed() -> grpc.ServerCertificateConfiguration | None:
            """Called by gRPC before each handshake, on a thread of its own, so nothing is read or checked here."""
            nonlocal handed_over
            if handed_over is self._configuration:
                return None
            handed_over = self._configuration
            return handed_over

        mutual = len(self._paths) == 3
        return grpc.dynamic_ssl_server_credentials(handed_over, changed, mutual)  # type: ignore[arg-type] # None is allowed

    async def watch(self, poll_seconds: float) -> None:
        """Takes the files up again whenever they change, until it is cancelled."""
        await self._files.watch(poll_seconds)

    def _take(self, contents: Sequence[bytes]) -> None:
        certificate, key, *authorities = contents
        expiry = _check_pair(self._paths, certificate, key)
        if authorities:
            _check_authorities(self._paths[2], authorities[0])
        self._configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], *authorities)
        self._metrics.tls_certificate_expiry.set(expiry)


def channel_credentials(ca: Path, certificate: Path | None = None, key: Path | None = None) -> grpc.ChannelCredentials:
    """What a client connects with: `ca` are the authorities it trusts; certificate and key are its own, for mutual TLS.

    Raises:
        CredentialsError: a file can't be read or used.
    """
    authorities = read(ca)
    _check_authorities(ca, authorities)
    if certificate is None or key is None:
        return grpc.ssl_channel_credentials(authorities)
    own, private = read(certificate), read(key)
    _check_pair([certificate, key], own, private)
    return grpc.ssl_channel_credentials(authorities, private, own)


def _check_pair(paths: Sequence[Path], certificate: bytes, key: bytes) -> float:
    """When the certificate expires, Unix time. Raises CredentialsError unless it and its key can be used now."""
    first = _blocks(paths[0], certificate, "CERTIFICATE")[0]
    _blocks(paths[1], key, "PRIVATE KEY")

    def refuse() -> str:  # without it, OpenSSL would ask at the terminal
        raise CredentialsError(f"{paths[1]} is encrypted; a key without a password is needed")

    try:
        with _file(certificate) as certificate_file, _file(key) as key_file:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate_file, key_file, refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CredentialsError(f"{paths[1]} is not the key of {paths[0]}") from error
        raise CredentialsError(f"{paths[0]} with {paths[1]} cannot be used: {error.reason or error}") from error
    expiry = _expiry(ssl.PEM_cert_to_DER_cert(first.decode()))
    if expiry <= time.time():
        raise CredentialsError(f"{paths[0]} has expired on {datetime.fromtimestamp(expiry, UTC):%Y-%m-%d %H:%M} UTC")
    return expiry


def _check_authorities(path: Path, content: bytes) -> None:
    blocks = _blocks(path, content, "CERTIFICATE")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=b"\n".join(blocks).decode())
    except ssl.SSLError as error:
        raise CredentialsError(f"{path} cannot be used: {error.reason or error}") from error


def _blocks(path: Path, content: bytes, kind: str) -> list[bytes]:
    """The PEM blocks of a file whose kind ends in `kind`. Raises CredentialsError if there is none, or one is cut off."""
    blocks = list(_BLOCK.finditer(content))
    found = [block[0] for block in blocks if block[1].endswith(kind.encode())]
    if len(blocks) != content.count(b"-----BEGIN ") or not found:
        raise CredentialsError(f"{path} holds no complete PEM block {kind}, or one that is cut off")
    return found


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """A path at which OpenSSL, which reads no bytes, can read just these; they touch no disk."""
    file = os.memfd_create("pem")
    try:
        path = Path(f"/proc/self/fd/{file}")
        path.write_bytes(content)
        yield str(path)
    finally:
        os.close(file)


def _expiry(certificate: bytes) -> float:
    """When a DER certificate that OpenSSL has accepted expires, Unix time.

    Python's ssl tells it only of a peer's certificate, and one whose chain it could verify. Source: RFC 5280, 4.1.
    """
    _, body, _ = _element(certificate)
    _, rest, _ = _element(body)  # tbsCertificate
    tag, _, after = _element(rest)
    if tag == 0xA0:  # the version, which may be left out
        rest = after
    for _ in range(3):  # serialNumber, signature, issuer
        _, _, rest = _element(rest)
    _, validity, _ = _element(rest)
    _, _, rest = _element(validity)  # notBefore
    tag, text, _ = _element(rest)  # notAfter
    year = "%y" if tag == 0x17 else "%Y"  # UTCTime, of the years 1950 to 2049; GeneralizedTime
    return datetime.strptime(text.decode(), f"{year}%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(encoded: bytes) -> tuple[int, bytes, bytes]:
    """The first DER element of `encoded`: its tag, its content, and what comes after it."""
    tag, length, start = encoded[0], encoded[1], 2
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(encoded[2:start])
    return tag, encoded[start : start + length], encoded[start + length :]
