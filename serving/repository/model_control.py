"""Interface to load and unload models on request."""

from typing import Protocol


class ModelControl(Protocol):
    """Loads and unloads models: a Repository, or in a worker process the line to the supervisor, which asks every worker."""

    async def load(self, name: str) -> None:
        """Loads a model, or follows its directory if it is loaded already.

        Raises:
            UnknownModel: there is no model of that name.
            LoadFailed: a version that has a role can't be served.
        """

    async def unload(self, name: str) -> None:
        """Stops serving a model until it is loaded again.

        Raises:
            UnknownModel: there is no model of that name.
        """
