"""TLS credentials of the client, from PEM files that may be renewed while the client runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import grpc

from .pem import CredentialsError, NotYetValid, check_authorities, check_pair


class TLSCredentials(grpc.ChannelCredentials):
    """gRPC channel credentials that remember the files they were read from. Create them with `channel_credentials`."""

    def __init__(self, paths: Sequence[Path]):
        """Reads and checks the files.

        Args:
            paths: the authorities; for mutual TLS also the certificate chain and its private key.

        Raises:
            CredentialsError: a file can't be read or used, the certificate expired, or the key does not belong to it.
        """
        self._paths = paths
        self._seen: list[bytes | None] = [_content(path) for path in paths]
        self._check()
        authorities, *own = self._seen
        credentials = grpc.ssl_channel_credentials(authorities, *reversed(own))
        # grpcio offers no public way to derive from its credentials; its channels take this one attribute.
        self._credentials = credentials._credentials  # type: ignore[attr-defined]

    def renewed(self) -> Self | None:
        """Reads the files again.

        Returns:
            Credentials from the changed files, or None if the files did not change since the last call.

        Raises:
            CredentialsError: the changed files can't be used. These credentials stay valid.
        """
        contents = [_content(path) for path in self._paths]
        if contents == self._seen:
            return None
        before, self._seen = self._seen, contents
        try:
            return type(self)(self._paths)
        except NotYetValid:
            self._seen = before  # the same files are tried again
            raise

    def _check(self) -> None:
        contents: list[bytes] = []
        for path, content in zip(self._paths, self._seen, strict=True):
            if content is None:
                raise CredentialsError(f"{path} can't be read: check that the file exists and that this user may read it")
            contents.append(content)
        check_authorities(self._paths[0], contents[0])
        if contents[1:]:
            check_pair(self._paths[1:], contents[1:], self._paths[1:])
        if [_content(path) for path in self._paths] != self._seen:
            raise CredentialsError("the files changed while they were read: read them again")


def channel_credentials(
    ca: str | Path, certificate: str | Path | None = None, key: str | Path | None = None
) -> TLSCredentials:
    """Returns credentials for a TLS connection, from PEM files.

    `DigitClient` polls the files, and uses changed ones for new connections.

    Args:
        ca: certificates of the authorities that the client trusts.
        certificate: the client's own certificate chain, for mutual TLS.
        key: the private key of `certificate`, not encrypted.

    Raises:
        CredentialsError: a file can't be read or used, the certificate expired, or the key does not belong to it.
        ValueError: only one of `certificate` and `key` is given.
    """
    if certificate is None and key is None:
        return TLSCredentials([Path(ca)])
    if certificate is None or key is None:
        given, missing = ("certificate", "key") if key is None else ("key", "certificate")
        raise ValueError(f"{given} was given without {missing}: mutual TLS needs both")
    return TLSCredentials([Path(ca), Path(certificate), Path(key)])


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
