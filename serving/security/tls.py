"""TLS and mutual TLS, from PEM files that may be replaced while the server runs."""

import os
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc

from serving.security.credential_files import CredentialFiles, CredentialsError
from serving.telemetry.metrics import Metrics

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s.*?-----END \1-----", re.DOTALL)


class TLS:
    """TLS of a server: its certificate and key, and for mutual TLS the authorities that sign client certificates.

    Handshakes use the current files. Open connections stay open when the files change.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None, metrics: Metrics):
        """Reads and checks the files.

        Args:
            certificate: certificate of the server, then the intermediate certificates up to an authority that clients trust.
            key: private key of the server's certificate, without a password.
            client_ca: authorities; a client certificate must be signed by one. None asks for no client certificate.
            metrics: shows when the certificate expires, and counts reloads that fail.

        Raises:
            CredentialsError: a file can't be read or is invalid.
        """
        self._paths = [certificate, key, *([client_ca] if client_ca else [])]
        self._metrics = metrics
        self._files = CredentialFiles("tls", self._paths, self._apply, metrics)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Returns credentials for a gRPC server, which must be referenced for as long as the server lives."""
        current = self._configuration

        def fetch_if_changed() -> grpc.ServerCertificateConfiguration | None:
            """Runs before each handshake, on a gRPC thread, so it does no reading and no checking."""
            nonlocal current
            if current is self._configuration:
                return None
            current = self._configuration
            return current

        mutual = len(self._paths) == 3
        return grpc.dynamic_ssl_server_credentials(current, fetch_if_changed, mutual)  # type: ignore[arg-type] # None is allowed

    def poll(self) -> bool:
        """Reloads the files if they have changed; returns False while they still change."""
        return self._files.poll()

    async def watch(self, poll_seconds: float) -> None:
        """Reloads the files whenever they change, until cancelled."""
        await self._files.watch(poll_seconds)

    def _apply(self, contents: Sequence[bytes]) -> None:
        certificate, key, *authorities = contents
        expiry = _check_pair(self._paths, certificate, key)
        if authorities:
            _check_authorities(self._paths[2], authorities[0])
        self._configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], *authorities)
        self._metrics.tls_certificate_expiry.set(expiry)


def _check_pair(paths: Sequence[Path], certificate: bytes, key: bytes) -> float:
    """Checks that a certificate and its key can be used now; returns the expiry, Unix time. Raises CredentialsError."""
    first = _parse_blocks(paths[0], certificate, "CERTIFICATE")[0]
    _parse_blocks(paths[1], key, "PRIVATE KEY")

    def refuse_password() -> str:  # without this callback, OpenSSL asks at the terminal
        raise CredentialsError(f"{paths[1]} is encrypted, expected a key without a password")

    try:
        with _in_memory(certificate) as certificate_file, _in_memory(key) as key_file:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate_file, key_file, refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CredentialsError(f"{paths[1]} is not the key of {paths[0]}") from error
        raise CredentialsError(f"{paths[0]} with {paths[1]} cannot be used: {error.reason or error}") from error
    expiry = _parse_expiry(ssl.PEM_cert_to_DER_cert(first.decode()))
    if expiry <= time.time():
        raise CredentialsError(f"{paths[0]} expired on {datetime.fromtimestamp(expiry, UTC):%Y-%m-%d %H:%M} UTC")
    return expiry


def _check_authorities(path: Path, content: bytes) -> None:
    blocks = _parse_blocks(path, content, "CERTIFICATE")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=b"\n".join(blocks).decode())
    except ssl.SSLError as error:
        raise CredentialsError(f"{path} cannot be used: {error.reason or error}") from error


def _parse_blocks(path: Path, content: bytes, kind: str) -> list[bytes]:
    """Returns the PEM blocks whose label ends in `kind`. Raises CredentialsError if there is none, or a block is cut off."""
    blocks = list(_BLOCK.finditer(content))
    found = [block[0] for block in blocks if block[1].endswith(kind.encode())]
    if len(blocks) != content.count(b"-----BEGIN ") or not found:
        raise CredentialsError(f"{path} holds no complete PEM block {kind}, or a block that is cut off")
    return found


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Puts bytes into a file in memory, for OpenSSL, which loads a certificate chain only from a path."""
    file = os.memfd_create("pem")
    try:
        path = Path(f"/proc/self/fd/{file}")
        path.write_bytes(content)
        yield str(path)
    finally:
        os.close(file)


def _parse_expiry(certificate: bytes) -> float:
    """Returns the expiry of a DER certificate that OpenSSL has accepted, Unix time.

    Python's ssl shows the expiry only for a verified certificate of a peer. Source: RFC 5280, section 4.1.
    """
    _, body, _ = _parse_element(certificate)
    _, rest, _ = _parse_element(body)  # tbsCertificate
    tag, _, after = _parse_element(rest)
    if tag == 0xA0:  # version, which is optional
        rest = after
    for _ in range(3):  # serialNumber, signature, issuer
        _, _, rest = _parse_element(rest)
    _, validity, _ = _parse_element(rest)
    _, _, rest = _parse_element(validity)  # notBefore
    tag, text, _ = _parse_element(rest)  # notAfter
    year = "%y" if tag == 0x17 else "%Y"  # UTCTime, for 1950 to 2049; else GeneralizedTime
    return datetime.strptime(text.decode(), f"{year}%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _parse_element(encoded: bytes) -> tuple[int, bytes, bytes]:
    """Splits DER into the tag of its first element, the content of that element, and the rest."""
    tag, length, start = encoded[0], encoded[1], 2
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(encoded[2:start])
    return tag, encoded[start : start + length], encoded[start + length :]
