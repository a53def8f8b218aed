"""A handshake of the server with itself, before a certificate replaces one that works.

OpenSSL loads keys that no handshake can use, such as keys on a curve that clients do not offer. The trial uses both
libraries with which this service and its callers speak TLS: OpenSSL, for the front http2, curl and Python; and the BoringSSL
of gRPC, for the front grpcio and the clients of gRPC. The certificate is its own authority in the trial, because a server
does not know which authorities its clients trust.
"""

import ipaddress
import secrets
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc

_SECONDS = 10.0
_ROUNDS = 5  # of messages in a handshake, at most

# The end of the error where gRPC accepts all of a certificate but its host. Source: grpc_tls_certificate_verifier.cc.
_OTHER_HOST = "Hostname Verification Check failed."


class TrialFailed(Exception):
    """A handshake failed; the message has the reason."""


def try_handshakes(context: ssl.SSLContext, certificate: bytes, chain: bytes, key: bytes) -> None:
    """Does a handshake with each library.

    Args:
        context: context of the server, with chain and key, which asks for no client certificate.
        certificate: certificate of the server, PEM.
        chain: the certificate and its intermediate certificates, PEM.
        key: private key, PEM.

    Raises:
        TrialFailed: a handshake failed.
    """
    host = _try_openssl(context, certificate)
    _try_grpc(certificate, chain, key, host)


def _try_openssl(context: ssl.SSLContext, certificate: bytes) -> str:
    """Does a handshake in memory; returns the host as `_host` does."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client_context.load_verify_locations(cadata=certificate.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(_ROUNDS):
            for side in (client, server):
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise TrialFailed(f"clients refuse it: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise TrialFailed(f"no handshake is possible: {error.reason}") from error
    found = client.getpeercert()
    if not found:
        raise TrialFailed("the handshake does not end")
    return _host(found)


def _host(certificate: Mapping[str, Any]) -> str:
    """Returns a host for which the certificate, as `getpeercert` describes it, is valid.

    Returns:
        The host; empty for a certificate that names a URI only, as SPIFFE does: its clients check no host.

    Raises:
        TrialFailed: the certificate names nothing that clients check.
    """
    names: dict[str, list[str]] = {"DNS": [], "IP Address": [], "URI": []}
    for kind, name in certificate.get("subjectAltName", ()):
        names.setdefault(kind, []).append(str(name).strip())
    common = [str(name) for part in certificate.get("subject", ()) for kind, name in part if kind == "commonName"]
    for host in sorted(names["DNS"], key=lambda name: "*" in name):
        return host.replace("*", "any")
    for address in names["IP Address"]:
        with suppress(ValueError):  # of neither 4 nor 16 bytes
            return str(ipaddress.ip_address(address))
    for host in common:
        return host.replace("*", "any")
    if not names["URI"]:
        raise TrialFailed("it names no host, neither as subjectAltName nor as commonName")
    return ""


def _try_grpc(certificate: bytes, chain: bytes, key: bytes, host: str) -> None:
    """Calls a server of gRPC that has no methods, over a socket without a file; without a host, up to the check of it."""
    address = f"unix-abstract:digits-tls-{secrets.token_hex(8)}"
    server = grpc.server(ThreadPoolExecutor(1))
    try:
        server.add_secure_port(address, grpc.ssl_server_credentials([(key, chain)]))
        server.start()
        options = [("grpc.ssl_target_name_override", host or "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate), options) as channel:
            call: Any = channel.unary_unary("/digits/Trial")
            call(b"", timeout=_SECONDS)
    except grpc.RpcError as error:
        details = error.details() or ""
        checked = error.code() is grpc.StatusCode.UNIMPLEMENTED  # the answer of a server without methods
        if not checked and (host or not details.endswith(_OTHER_HOST)):
            reason = details.rpartition(f"{address}: ")[2].replace(address, "the trial")
            raise TrialFailed(f"clients of gRPC refuse it: {reason}") from error
    except RuntimeError as error:
        raise TrialFailed("gRPC can't use it") from error
    finally:
        server.stop(None)
