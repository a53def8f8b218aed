"""Token file: the clients of the service, in TOML.

    [clients.sorter-7]
    token_sha256 = "..."        # SHA-256 of the token, 64 hexadecimal digits
    roles = ["recognize"]
    images_per_second = 5000

The file holds no secret that a caller could present.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from serving.security.credential_files import CredentialsError

Role = Literal["recognize", "truth", "admin"]
"""Permission of a client: to have images read, to report truth, or to load and unload models."""

_EMPTY_TOKEN_SHA256 = hashlib.sha256(b"").hexdigest()


class ClientEntry(BaseModel):
    """Table of one client."""

    # defer_build: most servers have no token file, and start sooner without the validators.
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, strict=True)

    token_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]
    roles: Annotated[frozenset[Role], Field(min_length=1, strict=False)]
    images_per_second: Annotated[float | None, Field(ge=0.001, allow_inf_nan=False)] = None


class _TokenFile(BaseModel):
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, strict=True)

    clients: Annotated[
        dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")], ClientEntry],
        Field(min_length=1),
    ]

    @model_validator(mode="after")
    def _tokens_differ(self) -> "_TokenFile":
        names: dict[str, str] = {}
        for name, entry in self.clients.items():
            other = names.setdefault(entry.token_sha256.lower(), name)
            if other != name:
                raise ValueError(f"{other} and {name} have the same token")
        return self


def parse(path: Path, content: bytes) -> dict[str, ClientEntry]:
    """Parses a token file.

    Args:
        path: path to name in errors.
        content: content of the file.

    Returns:
        Entry of each client, by name.

    Raises:
        CredentialsError: the file is not valid; the message lists every error, and shows no value.
    """
    try:
        tables: dict[str, Any] = tomllib.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise CredentialsError(f"{path} is not valid TOML: {error}") from error
    try:
        clients = _TokenFile.model_validate(tables).clients
    except ValidationError as error:
        errors = [
            ": ".join(filter(None, (".".join(map(str, found["loc"])), found["msg"])))
            for found in error.errors(include_input=False, include_url=False)
        ]
        raise CredentialsError(f"{path}: {'; '.join(errors)}") from None
    for name, entry in clients.items():
        if entry.token_sha256.lower() == _EMPTY_TOKEN_SHA256:
            raise CredentialsError(
                f"{path}: clients.{name}.token_sha256: that is the SHA-256 of an empty token, expected that of the "
                "client's token"
            )
    return clients
