"""Which version of a model answers which requests: what its routing.toml says.

    stable = 20261121092551
    [canary]
    version = 20261122101500
    percent = 10
    [shadow]
    version = 20261123080000

Without the file, or where it names none, the highest version is stable.
"""

import hashlib
import random
import tomllib
from collections.abc import Iterable
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class Canary(BaseModel):
    """A version that gets a part of the calls."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int = Field(ge=0)
    percent: float = Field(ge=0, le=100)


class ShadowVersion(BaseModel):
    """A version that is compared with stable and never answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int = Field(ge=0)


class RoutingError(Exception):
    """A routing.toml that can't be followed; the message says why."""


class Routing(BaseModel):
    """The version of each role. Where none is named, the highest version is stable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    stable: int | None = Field(None, ge=0)
    canary: Canary | None = None
    shadow: ShadowVersion | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """What a routing.toml says. Raises RoutingError."""
        try:
            return cls.model_validate(tomllib.loads(text))
        except ValidationError as error:
            mistakes = [f"{'.'.join(map(str, wrong['loc'])) or 'roles'}: {wrong['msg']}" for wrong in error.errors()]
            raise RoutingError("; ".join(mistakes)) from None
        except (ValueError, RecursionError) as error:  # tomllib raises more than its own for absurd nesting and numbers
            raise RoutingError(str(error)) from None

    @model_validator(mode="after")
    def _one_role_each(self) -> Self:
        if len(self.named()) < sum(role is not None for role in (self.stable, self.canary, self.shadow)):
            raise ValueError("a version can have one role only")
        if self.stable is None and self._others():
            # Else, to delete the canary's section would be to give its version all the calls.
            raise ValueError("beside a canary or a shadow, stable must be named")
        return self

    def named(self) -> set[int]:
        """The versions that it names."""
        stable = set() if self.stable is None else {self.stable}
        return stable | self._others()

    def stable_candidates(self, versions: Iterable[int]) -> list[int]:
        """Those of `versions` that may be stable, the first choice first."""
        return sorted(versions, reverse=True) if self.stable is None else [self.stable]

    def to_canary(self, name: str, key: str) -> bool:
        """Whether the canary is to answer a request for the model `name`: by chance, or by its key when it has one.

        The same key has the same answer in every process and replica.
        """
        return self.canary is not None and _position(name, key) < self.canary.percent

    def _others(self) -> set[int]:
        return {role.version for role in (self.canary, self.shadow) if role}


def _position(name: str, key: str) -> float:
    """Where a request lies between 0 and 100."""
    if not key:
        return random.random() * 100  # noqa: S311 - it chooses a version, it keeps no secret
    digest = hashlib.blake2b(f"{name}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100
