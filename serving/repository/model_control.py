"""DOC."""

from typing import Protocol


class Models(Protocol):
    """What loads and unloads models: a Repository, or in a worker all the workers' together."""

    async def load(self, name: str) -> None:
        """Has the model answer; raises UnknownModel or LoadFailed."""

    async def unload(self, name: str) -> None:
        """Has the model answer no more; raises UnknownModel."""
