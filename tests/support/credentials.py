"""Tokens, certificates and authorities for the tests of security."""

import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path

import grpc
import trustme

from serving.security.tls import TLS
from serving.telemetry.metrics import Metrics

TOKEN = "b2f6c1e0a4"  # noqa: S105 # known to the tests only


def entry(name: str, token: str = TOKEN, roles: str = '"recognize"', more: str = "") -> str:
    """Returns the table of one client in a token file."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[clients.{name}]\ntoken_sha256 = "{digest}"\nroles = [{roles}]\n{more}\n'


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@dataclass
class Files:
    """TLS files of a server, in one directory."""

    directory: Path

    @property
    def certificate(self) -> Path:
        return self.directory / "tls.crt"

    @property
    def key(self) -> Path:
        return self.directory / "tls.key"

    @property
    def client_ca(self) -> Path:
        return self.directory / "ca.crt"

    def put(self, server: trustme.LeafCert, clients: trustme.CA) -> None:
        self.certificate.write_bytes(chain(server))
        self.key.write_bytes(key(server))
        self.client_ca.write_bytes(root(clients))

    def open(self, metrics: Metrics, mutual: bool = True) -> TLS:
        return TLS(self.certificate, self.key, self.client_ca if mutual else None, metrics)


def chain(certificate: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in certificate.cert_chain_pems)


def key(certificate: trustme.LeafCert) -> bytes:
    return certificate.private_key_pem.bytes()


def root(authority: trustme.CA) -> bytes:
    return authority.cert_pem.bytes()


def issue(authority: trustme.CA, days: float = 30) -> trustme.LeafCert:
    """Issues a certificate for 127.0.0.1 and localhost; negative `days` make it expired."""
    now = datetime.datetime.now(datetime.UTC)
    before, after = now - datetime.timedelta(days=60), now + datetime.timedelta(days=days)
    return authority.issue_cert("127.0.0.1", "localhost", not_before=before, not_after=after)


def trusting(authority: trustme.CA, certificate: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
    if certificate is None:
        return grpc.ssl_channel_credentials(root(authority))
    return grpc.ssl_channel_credentials(root(authority), key(certificate), chain(certificate))
