"""Bearer tokens: who makes a call, which roles the client has, and how many images a second it may send."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from pathlib import Path

from serving.errors import PermissionDenied, RateLimited, Unauthenticated
from serving.security import token_file
from serving.security.credential_files import CredentialFiles, CredentialsError
from serving.security.rate_limits import RateLimits
from serving.security.token_file import ClientEntry, Role
from serving.telemetry.metrics import Metrics

Metadata = Iterable[tuple[str, str | bytes]]

# One message for every wrong token, so that a caller learns nothing by trying tokens.
_UNAUTHENTICATED = "no valid token: this server asks for metadata `authorization: Bearer TOKEN`"


class Client:
    """A client, for as long as it keeps its token and its roles.

    Attributes:
        name: name in the token file.
        digest: SHA-256 of its token.
        roles: its permissions.
        revoked: True once its token, or one of its roles, was withdrawn; its open streams end then.
    """

    def __init__(self, name: str, entry: ClientEntry, limits: RateLimits):
        self.name = name
        self.digest = bytes.fromhex(entry.token_sha256)
        self.revoked = False
        self._limits = limits
        self._slot = limits.find_slot(name)
        self.update(entry)

    def update(self, entry: ClientEntry) -> None:
        """Takes roles and rate limit from a changed token file."""
        self.roles = entry.roles
        self._images_per_second = entry.images_per_second

    def require_valid(self) -> None:
        """Raises Unauthenticated if the client was revoked, as may happen in the middle of a stream."""
        if self.revoked:
            raise Unauthenticated(_UNAUTHENTICATED)

    def spend(self, images: int) -> None:
        """Charges `images` to the client's rate limit.

        A client may send the images of one second in one burst. A larger call is accepted when the client has been silent
        for long enough, and charged in full afterwards: the average rate holds for calls of any size.

        Raises:
            RateLimited: the limit is used up, and nothing was charged; the error has the time after which to retry.
            Unauthenticated: the client was revoked.
        """
        self.require_valid()
        if self._images_per_second is None:
            return
        wait = self._limits.take(self._slot, images, self._images_per_second)
        if wait:
            message = f"client {self.name} has used up its {self._images_per_second:g} images a second"
            raise RateLimited(message, retry_after_seconds=wait)

    def give_back(self, images: int) -> None:
        """Refunds a `spend`, for images that were not read."""
        if self._images_per_second is not None:
            self._limits.give_back(self._slot, images / self._images_per_second)


class TokenAuthenticator:
    """Authenticates calls against the clients of a token file."""

    def __init__(self, path: Path, metrics: Metrics, limits: Path | None = None):
        """Reads the token file.

        Args:
            path: token file.
            metrics: counts reloads that fail.
            limits: file of the rate limits, created if missing, for processes that serve together. It must not outlive a
                restart of the machine. None for a process that serves alone.

        Raises:
            CredentialsError: the token file can't be read or is not valid, or `limits` can't be opened.
        """
        self._path = path
        self._clients: dict[str, Client] = {}
        self._limits = RateLimits(limits)
        try:
            self._files = CredentialFiles("tokens", [path], self._apply, metrics)
        except CredentialsError:
            self._limits.close()
            raise

    def authenticate(self, metadata: Metadata | None, role: Role | None) -> Client:
        """Returns the client that makes a call.

        Args:
            metadata: metadata of the call.
            role: role that the call needs; None if any client may make it.

        Raises:
            Unauthenticated: there is no token, or an unknown one.
            PermissionDenied: the client doesn't have the role.
        """
        presented = hashlib.sha256(_parse_bearer_token(metadata)).digest()
        known = None
        for client in self._clients.values():  # compares with every client: the time must not depend on the match
            if hmac.compare_digest(client.digest, presented):
                known = client
        if known is None:
            raise Unauthenticated(_UNAUTHENTICATED)
        if role is not None and role not in known.roles:
            raise PermissionDenied(f"client {known.name} does not have the role {role}")
        return known

    def poll(self) -> bool:
        """Reloads the token file if it has changed; returns False while it still changes."""
        return self._files.poll()

    async def watch(self, poll_seconds: float) -> None:
        """Reloads the token file whenever it changes, until cancelled."""
        await self._files.watch(poll_seconds)

    def close(self) -> None:
        """Closes the file of the rate limits; clients can't spend any more."""
        self._limits.close()

    def _apply(self, contents: Sequence[bytes]) -> None:
        """Replaces the clients by those of the file. A client that keeps its token and its roles stays the same object."""
        entries = token_file.parse(self._path, contents[0])
        clients = {}
        for name, entry in entries.items():
            client = self._clients.get(name)
            if client is None or client.digest.hex() != entry.token_sha256.lower() or client.roles - entry.roles:
                client = Client(name, entry, self._limits)
            clients[name] = client
        for name, client in clients.items():  # nothing below raises, so the switch is all or nothing
            client.update(entries[name])
        before, self._clients = self._clients, clients
        for name, client in before.items():
            client.revoked = clients.get(name) is not client


def _parse_bearer_token(metadata: Metadata | None) -> bytes:
    """Extracts the token of a call; empty, which no client has, unless there is exactly one well-formed token."""
    values = [value for key, value in metadata or () if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str) or not values[0].isascii():
        return b""
    scheme, _, token = values[0].partition(" ")
    return token.strip().encode() if scheme.lower() == "bearer" else b""
