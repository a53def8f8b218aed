"""The connection flags that several commands share, and the call to the service."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from serving.cli.manual import utf8_text

if TYPE_CHECKING:
    import grpc

    from serving.client import DigitClient


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a connection to a command."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--address",
        type=utf8_text,
        default="127.0.0.1:8001",
        help="host:port of the service; dns:///NAME:PORT for all servers of a name (default: %(default)s)",
    )
    group.add_argument("--timeout", type=float, default=5.0, help="deadline of a call, seconds (default: %(default)s)")
    group.add_argument("--tls-ca", type=Path, metavar="FILE", help="certificate authorities to trust, PEM; turns TLS on")
    group.add_argument("--tls-certificate", type=Path, metavar="FILE", help="client certificate for mutual TLS, PEM")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="private key of the client certificate, PEM")
    group.add_argument(
        "--token-file", type=Path, metavar="FILE", help="file with the token of this client (default: $DIGITS_TOKEN)"
    )


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parses and checks the flags of a command; exits with status 2 if they can't be used."""
    options = parser.parse_args(arguments)
    if (options.tls_certificate is None) != (options.tls_key is None) or (options.tls_certificate and not options.tls_ca):
        parser.error("--tls-certificate and --tls-key are needed together, and with --tls-ca")
    if not 0 < options.timeout < math.inf:
        parser.error(f"--timeout must be a number above 0, not {options.timeout:g}")
    return options


def call(command: str, options: argparse.Namespace, work: "Callable[[DigitClient], int]") -> int:
    """Connects to the service and does `work`, whose exit status it returns.

    A failed call, or a file of credentials that can't be used, is reported on stderr; the exit status is 1.

    Args:
        command: name of the command, which starts each error message.
        options: the flags from `parse`.
        work: calls the service.
    """
    import grpc

    from serving.client import CredentialsError

    try:
        with _connect(options) as client:
            return work(client)
    except CredentialsError as error:
        print(f"digits {command}: {error}", file=sys.stderr)
    except grpc.RpcError as error:
        reason = f"{error.code().name}: {error.details()}{_tls_hint(error)}"
        print(f"digits {command}: {options.address}: {reason}", file=sys.stderr)
    return 1


def read_token(options: argparse.Namespace) -> str | None:
    """Reads the token from the file that the flags name, else from the environment.

    Raises:
        CredentialsError: the file can't be read or is empty, or the token is not one line of ASCII.
    """
    from serving.client import CredentialsError

    try:
        token = options.token_file.read_bytes() if options.token_file else os.environb.get(b"DIGITS_TOKEN", b"")
    except OSError as error:
        raise CredentialsError(f"{options.token_file} can't be read: {error.strerror}") from error
    token = token.strip()
    if options.token_file and not token:
        raise CredentialsError(f"{options.token_file} is empty, expected a token")
    if not (token.isascii() and token.decode("ascii").isprintable()):
        raise CredentialsError(f"{options.token_file or 'DIGITS_TOKEN'} is not a token, expected one line of ASCII")
    return token.decode() or None


def _tls_hint(error: "grpc.RpcError") -> str:
    """Returns a question about the TLS flags for an error that wrong flags cause, else ""."""
    details = error.details() or ""
    if error.code().name != "UNAVAILABLE" or not ("Socket closed" in details or "SSL" in details):
        return ""
    if "WRONG_VERSION_NUMBER" in details:  # the answer to the handshake was not TLS
        return "; does the server serve without TLS? then leave --tls-ca out"
    return "; does the server want TLS (--tls-ca) or a client certificate (--tls-certificate)?"


def _connect(options: argparse.Namespace) -> "DigitClient":
    """Returns a client for the service that the flags name. Raises CredentialsError."""
    from serving.client import DigitClient, channel_credentials

    credentials = None
    if options.tls_ca:
        credentials = channel_credentials(options.tls_ca, options.tls_certificate, options.tls_key)
    return DigitClient(options.address, options.timeout, credentials, read_token(options))
