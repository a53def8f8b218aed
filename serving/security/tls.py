"""TLS and mutual TLS, from PEM files that may be replaced while the server runs."""

import os
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from serving.client import pem
from serving.security.credential_files import CredentialFiles, CredentialsError
from serving.security.tls_trial import TrialFailed, try_handshakes
from serving.telemetry.metrics import Metrics


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

    def context(self) -> ssl.SSLContext:
        """Returns the context for the next handshake of a server on asyncio, for HTTP/2 only."""
        return self._context

    def poll(self) -> bool:
        """Reloads the files if they have changed; returns False while they still change."""
        return self._files.poll()

    async def watch(self, poll_seconds: float) -> None:
        """Reloads the files whenever they change, until cancelled."""
        await self._files.watch(poll_seconds)

    def _apply(self, contents: Sequence[bytes]) -> None:
        certificate, key, *authorities = contents
        try:
            with _in_memory(certificate) as certificate_file, _in_memory(key) as key_file:
                expiry = pem.check_pair(self._paths, contents, [certificate_file, key_file])
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate_file, key_file)
            try_handshakes(context, pem.first_certificate(certificate), certificate, key)
            if authorities:
                pem.check_authorities(self._paths[2], authorities[0])
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(cadata=authorities[0].decode())
        except pem.CredentialsError as error:
            raise CredentialsError(str(error)) from error
        except TrialFailed as error:
            raise CredentialsError(f"{self._paths[0]} cannot be used: {error}") from error
        context.set_alpn_protocols(["h2"])
        self._context = context
        self._configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], *authorities)
        self._metrics.tls_certificate_expiry.set(expiry)
        self._expiry = expiry

    def expired(self) -> str:
        """Returns the reason why callers refuse the certificate; empty while it is valid."""
        return "" if time.time() < self._expiry else f"the certificate {self._paths[0].name} has expired"


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
