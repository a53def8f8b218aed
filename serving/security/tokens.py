"""Who may call: bearer tokens, the roles that come with them, and how many images a second each client may send.

The tokens are in a TOML file, which holds nothing that a caller could present:

    [clients.sorter-7]
    token_sha256 = "..."        # the SHA-256 of the token, 64 hexadecimal digits
    roles = ["recognize"]
    images_per_second = 5000
"""

import hashlib
import hmac
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from serving.errors import PermissionDenied, RateLimited, Unauthenticated
from serving.security.credential_files import CredentialFiles, CredentialsError
from serving.security.rate_limits import RateLimits
from serving.telemetry.metrics import Metrics

Role = Literal["recognize", "truth", "admin"]
"""What a client may do: have images read; report what they were; load and unload models."""

Metadata = Iterable[tuple[str, str | bytes]]

# The same whatever is wrong with a token, so that trying tokens teaches nothing.
_UNAUTHENTICATED = "no valid token: this server asks for metadata `authorization: Bearer TOKEN`"


class _Entry(BaseModel):
    """What the file says of one client."""

    # Not built before it is needed: most servers have no such file, and start sooner.
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, strict=True)

    token_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]
    roles: Annotated[frozenset[Role], Field(min_length=1, strict=False)]
    images_per_second: Annotated[float | None, Field(ge=0.001, allow_inf_nan=False)] = None


class _Tokens(BaseModel):
    """The whole file."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, strict=True)

    clients: Annotated[
        dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")], _Entry], Field(min_length=1)
    ]

    @model_validator(mode="after")
    def _tell_clients_apart(self) -> "_Tokens":
        names: dict[str, str] = {}
        for name, entry in self.clients.items():
            other = names.setdefault(entry.token_sha256.lower(), name)
            if other != name:
                raise ValueError(f"{other} and {name} have the same token")
        return self


class Client:
    """One client, for as long as its token and its roles stand.

    Attributes:
        name: its name in the file.
        digest: SHA-256 of its token.
        roles: what it may do.
        revoked: its token was taken back, or a role of it; calls that are under way end too.
    """

    def __init__(self, name: str, entry: _Entry, limits: "RateLimits"):
        self.name = name
        self.digest = bytes.fromhex(entry.token_sha256)
        self.revoked = False
        self._limits = limits
        self._slot = limits.slot(name)
        self.update(entry)

    def update(self, entry: _Entry) -> None:
        """Takes roles and limit from what the file says now."""
        self.roles = entry.roles
        self._images_per_second = entry.images_per_second

    def spend(self, images: int) -> None:
        """Takes `images` off what the client may send.

        A client may send one second's worth at once. A call with more than that is taken when the client has sent nothing
        for long enough, and is paid off afterwards: the rate holds on average, whatever the size of its calls.

        Raises:
            RateLimited: that would be too many, with the time after which it would not; nothing was taken off.
            Unauthenticated: the client is no longer known, as may happen in the middle of a stream.
        """
        if self.revoked:
            raise Unauthenticated(_UNAUTHENTICATED)
        if self._images_per_second is None:
            return
        wait = self._limits.take(self._slot, images, self._images_per_second)
        if wait:
            message = f"client {self.name} has used up its {self._images_per_second:g} images a second"
            raise RateLimited(message, retry_after_seconds=wait)

    def give_back(self, images: int) -> None:
        """Puts back what `spend` took for images that were not read after all."""
        if self._images_per_second is not None:
            self._limits.give_back(self._slot, images / self._images_per_second)


class Access:
    """The clients of the token file."""

    def __init__(self, path: Path, metrics: Metrics, limits: Path | None = None):
        """Reads the tokens.

        Args:
            path: the token file.
            metrics: where it is counted that a changed file can't be used.
            limits: a file, made where it is missing, in which the processes that serve together keep their rate limits; it
                must not outlive a restart of the machine. None where one process serves alone.

        Raises:
            CredentialsError: the file can't be read, or is not as it should be.
        """
        self._path = path
        self._clients: dict[str, Client] = {}
        self._limits = RateLimits(limits)
        try:
            self._files = CredentialFiles("tokens", [path], self._take, metrics)
        except CredentialsError:
            self._limits.close()
            raise

    def admit(self, metadata: Metadata | None, role: Role | None) -> Client:
        """The client that calls, by the metadata of its call; `role` is what the call needs, None when any client may.

        Raises:
            Unauthenticated: there is no token, or none that is known.
            PermissionDenied: the client doesn't have the role.
        """
        presented = hashlib.sha256(_token(metadata)).digest()
        known = None
        for client in self._clients.values():  # all of them, whichever it is: time must not tell where it was found
            if hmac.compare_digest(client.digest, presented):
                known = client
        if known is None:
            raise Unauthenticated(_UNAUTHENTICATED)
        if role is not None and role not in known.roles:
            raise PermissionDenied(f"client {known.name} does not have the role {role}")
        return known

    async def watch(self, poll_seconds: float) -> None:
        """Takes the file up again whenever it changes, until it is cancelled."""
        await self._files.watch(poll_seconds)

    def close(self) -> None:
        """Leaves the file of limits; no client may spend any more."""
        self._limits.close()

    def _take(self, contents: Sequence[bytes]) -> None:
        """Lets in those whom the file names, and nobody else. A client that keeps its token and its roles stays the same."""
        entries = _parse(self._path, contents[0])
        clients = {}
        for name, entry in entries.items():
            client = self._clients.get(name)
            if client is None or client.digest.hex() != entry.token_sha256.lower() or client.roles - entry.roles:
                client = Client(name, entry, self._limits)
            clients[name] = client
        for name, client in clients.items():  # from here nothing can fail
            client.update(entries[name])
        before, self._clients = self._clients, clients
        for name, client in before.items():
            client.revoked = clients.get(name) is not client


def _token(metadata: Metadata | None) -> bytes:
    """The token that a call carries; empty, which is no client's, where it carries none or anything else."""
    values = [value for key, value in metadata or () if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str) or not values[0].isascii():
        return b""
    scheme, _, token = values[0].partition(" ")
    return token.strip().encode() if scheme.lower() == "bearer" else b""


_NO_TOKEN = hashlib.sha256(b"").hexdigest()


def _parse(path: Path, content: bytes) -> dict[str, _Entry]:
    """What a token file says, by client. Raises CredentialsError with all that is wrong with it, but without its values."""
    try:
        tables: dict[str, Any] = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise CredentialsError(f"{path} is no TOML: {error}") from error
    try:
        clients = _Tokens.model_validate(tables).clients
    except ValidationError as error:
        mistakes = [
            ": ".join(filter(None, (".".join(map(str, mistake["loc"])), mistake["msg"])))
            for mistake in error.errors(include_input=False, include_url=False)
        ]
        raise CredentialsError(f"{path}: {'; '.join(mistakes)}") from None
    for name, entry in clients.items():
        if entry.token_sha256.lower() == _NO_TOKEN:
            raise CredentialsError(f"{path}: clients.{name}.token_sha256: that is the SHA-256 of nothing, not of a token")
    return clients
