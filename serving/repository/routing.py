"""Routing of requests between versions of a model, from its routing.toml.

    stable = 20261121092551
    [canary]
    version = 20261122101500
    percent = 10
    [shadow]
    version = 20261123080000

Without the file, or without `stable` in it, the highest version is stable.
"""

import hashlib
import random
import tomllib
from collections.abc import Iterable
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class Canary(BaseModel):
    """Version that answers a share of the requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int = Field(ge=0)
    percent: float = Field(ge=0, le=100)


class ShadowVersion(BaseModel):
    """Version that is compared with stable, and never answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int = Field(ge=0)


class RoutingError(Exception):
    """A routing.toml that is not valid."""


class Routing(BaseModel):
    """Version of each role; without a named stable version, the highest is stable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    stable: int | None = Field(None, ge=0)
    canary: Canary | None = None
    shadow: ShadowVersion | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses the text of a routing.toml. Raises RoutingError."""
        try:
            return cls.model_validate(tomllib.loads(text))
        except ValidationError as error:
            mistakes = [f"{'.'.join(map(str, wrong['loc'])) or 'roles'}: {wrong['msg']}" for wrong in error.errors()]
            raise RoutingError("; ".join(mistakes)) from None
        except (ValueError, RecursionError) as error:  # tomllib leaks both for extreme numbers and nesting
            raise RoutingError(str(error)) from None

    @model_validator(mode="after")
    def _one_role_each(self) -> Self:
        if len(self.named()) < sum(role is not None for role in (self.stable, self.canary, self.shadow)):
            raise ValueError("a version can have one role only")
        if self.stable is None and self._beside_stable():
            # Otherwise, deleting the canary's section would make the canary, as the highest version, stable.
            raise ValueError("beside a canary or a shadow, stable must be named")
        return self

    def named(self) -> set[int]:
        """Returns the versions that have a role by number."""
        stable = set() if self.stable is None else {self.stable}
        return stable | self._beside_stable()

    def stable_candidates(self, versions: Iterable[int]) -> list[int]:
        """Returns the versions that may become stable, in order of preference.

        Args:
            versions: versions on disk.
        """
        return sorted(versions, reverse=True) if self.stable is None else [self.stable]

    def to_canary(self, name: str, key: str) -> bool:
        """Returns True if the canary answers a request to the model `name`.

        A key decides the same way in every process and replica. Without a key, chance decides.
        """
        return self.canary is not None and _to_percentile(name, key) < self.canary.percent

    def _beside_stable(self) -> set[int]:
        return {role.version for role in (self.canary, self.shadow) if role}


def _to_percentile(name: str, key: str) -> float:
    """Maps a request to a number from 0 to 100, uniformly distributed over keys."""
    if not key:
        return random.random() * 100  # noqa: S311 - it chooses a version, it keeps no secret
    digest = hashlib.blake2b(f"{name}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100
