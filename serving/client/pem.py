"""Checks of PEM files: certificates, private keys and authorities. The server uses them too."""

import re
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s.*?-----END \1-----", re.DOTALL)

# The clock of whole seconds, which TLS libraries read, is that much behind.
_CLOCK_SECONDS = 0.02


class CredentialsError(ValueError):
    """A certificate or key file can't be used. The message names the file and the reason."""


class NotYetValid(CredentialsError):
    """A certificate can't be used before a time that is still to come."""


def check_pair(paths: Sequence[Path], contents: Sequence[bytes], files: Sequence[str | Path]) -> float:
    """Checks that a certificate chain and its private key can be used now.

    Args:
        paths: paths of certificate and key, for messages.
        contents: their contents.
        files: the files that OpenSSL reads, because it loads a chain only from a path. They hold `contents`.

    Returns:
        The expiry of the first certificate, Unix time.

    Raises:
        NotYetValid: the certificate can be used later.
        CredentialsError: a file is invalid, the certificate expired, or the key does not belong to it.
    """
    first = _parse_blocks(paths[0], contents[0], "CERTIFICATE")[0]
    _parse_blocks(paths[1], contents[1], "PRIVATE KEY")

    def refuse_password() -> str:  # without this callback, OpenSSL asks at the terminal
        raise CredentialsError(f"{paths[1]} is encrypted, expected a key without a password")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files[0], files[1], refuse_password)
    except OSError as error:  # ssl.SSLError, or a file that is gone by now
        reason = getattr(error, "reason", None)
        if reason == "KEY_VALUES_MISMATCH":
            raise CredentialsError(f"{paths[1]} is not the key of {paths[0]}") from error
        raise CredentialsError(f"{paths[0]} with {paths[1]} cannot be used: {reason or error}") from error
    begin, expiry = _parse_validity(ssl.PEM_cert_to_DER_cert(first.decode()))
    if expiry <= time.time():
        raise CredentialsError(f"{paths[0]} expired on {_date(expiry)}")
    if begin + _CLOCK_SECONDS > time.time():
        raise NotYetValid(f"{paths[0]} is not valid before {_date(begin)}")
    return expiry


def first_certificate(content: bytes) -> bytes:
    """Returns the first PEM certificate of a chain that `check_pair` has accepted."""
    return next(block[0] for block in _BLOCK.finditer(content) if block[1].endswith(b"CERTIFICATE"))


def check_authorities(path: Path, content: bytes) -> None:
    """Checks that a file holds certificates of authorities, one of which is valid now. Raises CredentialsError."""
    blocks = _parse_blocks(path, content, "CERTIFICATE")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=b"\n".join(blocks).decode())
    except ssl.SSLError as error:
        raise CredentialsError(f"{path} cannot be used: {error.reason or error}") from error
    validities = [_parse_validity(ssl.PEM_cert_to_DER_cert(block.decode())) for block in blocks]
    last = max(expiry for _, expiry in validities)
    if last <= time.time():
        raise CredentialsError(f"{path} expired on {_date(last)}")
    first = min(begin for begin, expiry in validities if expiry > time.time())
    if first + _CLOCK_SECONDS > time.time():
        raise NotYetValid(f"{path} is not valid before {_date(first)}")


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _parse_blocks(path: Path, content: bytes, kind: str) -> list[bytes]:
    """Returns the PEM blocks whose label ends in `kind`. Raises CredentialsError if there is none, or a block is cut off."""
    blocks = list(_BLOCK.finditer(content))
    found = [block[0] for block in blocks if block[1].endswith(kind.encode())]
    if len(blocks) != content.count(b"-----BEGIN ") or not found:
        raise CredentialsError(f"{path} holds no complete PEM block {kind}, or a block that is cut off")
    return found


def _parse_validity(certificate: bytes) -> tuple[float, float]:
    """Returns the begin and the end of the validity of a DER certificate that OpenSSL has accepted, Unix time.

    Python's ssl shows them only for a verified certificate of a peer. Source: RFC 5280, section 4.1.
    """
    _, body, _ = _parse_element(certificate)
    _, rest, _ = _parse_element(body)  # tbsCertificate
    tag, _, after = _parse_element(rest)
    if tag == 0xA0:  # version, which is optional
        rest = after
    for _ in range(3):  # serialNumber, signature, issuer
        _, _, rest = _parse_element(rest)
    _, validity, _ = _parse_element(rest)
    begin, text, rest = _parse_element(validity)  # notBefore
    end, later, _ = _parse_element(rest)  # notAfter
    return _parse_time(begin, text), _parse_time(end, later)


def _parse_time(tag: int, text: bytes) -> float:
    year = "%y" if tag == 0x17 else "%Y"  # UTCTime, for 1950 to 2049; else GeneralizedTime
    return datetime.strptime(text.decode(), f"{year}%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _parse_element(encoded: bytes) -> tuple[int, bytes, bytes]:
    """Splits DER into the tag of its first element, the content of that element, and the rest."""
    tag, length, start = encoded[0], encoded[1], 2
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(encoded[2:start])
    return tag, encoded[start : start + length], encoded[start + length :]
