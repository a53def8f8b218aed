"""Catalog of the models of one process: routes each request to the loaded version that answers it.

Repository writes the catalog, and requests read it. Both run on the event loop, so the catalog needs no lock.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

from serving.errors import ModelNotReady, UnknownModel
from serving.inference.batcher import Batcher
from serving.inference.classifier import Classifier
from serving.inference.entry import Group
from serving.repository.routing import Routing
from serving.repository.shadow import Shadow
from serving.repository.versions import ModelVersion
from serving.telemetry.version_metrics import VersionMetrics

State = Literal["READY", "LOADING", "UNAVAILABLE"]
RoutingRole = Literal["stable", "canary", "shadow"]


@dataclass(eq=False)
class Loaded:
    """One loaded version, with its queue.

    Attributes:
        name: name of the model.
        version: version number, as a decimal string.
        source: file that the version was loaded from.
        model: ONNX Runtime session and metadata.
        batcher: queue and runners.
        metrics: metrics with this version's labels.
        shadow: copies the answers of this version to the shadow version; None unless this version is stable and has one.
        groups: calls that this version answers by the run, by what all calls of the group ask for.
    """

    name: str
    version: str
    source: ModelVersion
    model: Classifier
    batcher: Batcher
    metrics: VersionMetrics
    shadow: Shadow | None = None
    groups: dict[Hashable, Group] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A version file that can't be served.

    Attributes:
        source: the file.
        reason: what is wrong, in words.
        kind: one of REFUSALS.
        attempts: times that the file was tried in a row.
        retry_at: when it is tried again, `time.monotonic`; infinity if the fault is in the file.
    """

    source: ModelVersion
    reason: str
    kind: str
    attempts: int = 1
    retry_at: float = math.inf


@dataclass
class ServedModel:
    """State of one model.

    Attributes:
        name: name of the model.
        versions: versions on disk, by number.
        routing: version of each role; None until a valid routing was read.
        roles: loaded version of each role, stable first. Replaced as a whole, so that requests see one switch.
        refused: versions that can't be served, by number.
        loading: numbers of the versions that are being loaded, once per load.
        unloaded: True from an unload request to the next load request.
        asked: time of the last load request, `time.time`; kept refusals from before don't count.
    """

    name: str
    versions: dict[int, ModelVersion] = field(default_factory=dict)
    routing: Routing | None = None
    roles: dict[RoutingRole, Loaded] = field(default_factory=dict)
    refused: dict[int, Refusal] = field(default_factory=dict)
    loading: list[int] = field(default_factory=list)
    unloaded: bool = False
    asked: float = 0.0

    @property
    def stable(self) -> Loaded | None:
        """Version that answers by default."""
        return self.roles.get("stable")


@dataclass(frozen=True)
class IndexEntry:
    """One version, as RepositoryIndex lists it."""

    name: str
    version: str
    state: State
    reason: str


class Catalog:
    """Models of this process.

    Attributes:
        default: name of the model for requests that name none.
        models: state of each model, by name.
    """

    def __init__(self, default: str):
        self.default = default
        self.models: dict[str, ServedModel] = {}

    def route(self, name: str = "", version: str = "", key: str = "") -> Loaded:
        """Returns the loaded version that answers a request.

        Args:
            name: name of the model; empty for the default model.
            version: version number as a decimal string; empty to follow the routing.
            key: requests with the same key get the same version for as long as the routing stays.

        Raises:
            UnknownModel: there is no such model, or the named version doesn't answer.
            ModelNotReady: no version of the model is loaded.
        """
        model = self.find(name)
        stable, canary = model.stable, model.roles.get("canary")
        if stable is None:
            raise ModelNotReady(f"model {model.name!r} is not loaded")
        if version:
            for loaded in (stable, canary):
                if loaded and loaded.version == version:
                    return loaded
            raise UnknownModel(f"version {version!r} of model {model.name!r} doesn't answer here")
        return canary if canary and model.routing and model.routing.to_canary(model.name, key) else stable

    def answering(self, name: str = "") -> list[Loaded]:
        """Returns the versions of a model that answer requests, stable first. Raises UnknownModel."""
        model = self.find(name)
        return [loaded for role, loaded in model.roles.items() if role != "shadow"]

    def knows(self, name: str, version: str) -> bool:
        """Returns True if a model has this version, on disk or loaded."""
        model = self.models.get(name)
        return model is not None and version in {str(number) for number in _version_numbers(model)}

    def names(self) -> list[str]:
        """Returns the names of all models, the default first."""
        return sorted(self.models, key=lambda name: (name != self.default, name))

    def index(self) -> list[IndexEntry]:
        """Lists every version of every model, loaded or not, the newest version of a model first."""
        models = [self.models[name] for name in self.names()]
        return [_index_entry(model, number) for model in models for number in sorted(_version_numbers(model), reverse=True)]

    def find(self, name: str) -> ServedModel:
        """Returns the state of a model; an empty name means the default. Raises UnknownModel."""
        try:
            return self.models[name or self.default]
        except KeyError:
            raise UnknownModel(f"there is no model {name!r}") from None


def _version_numbers(model: ServedModel) -> set[int]:
    """Returns the versions of a model that are on disk or loaded."""
    return {*model.versions, *(int(loaded.version) for loaded in model.roles.values())}


def _index_entry(model: ServedModel, number: int) -> IndexEntry:
    version = str(number)
    roles = [role for role, loaded in model.roles.items() if loaded.version == version]
    state: State = "UNAVAILABLE"
    if roles:
        state = "UNAVAILABLE" if roles == ["shadow"] else "READY"
        reason = ", ".join(roles)
    elif number in model.loading and number not in model.refused:
        state, reason = "LOADING", ""
    else:
        reason = "unloaded" if model.unloaded else "it has no role"
    if number in model.refused:
        refusal = model.refused[number].reason
        reason = f"{reason}; the file as it is now {refusal}" if roles else refusal
    elif number not in model.versions:
        reason += "; its file is gone from the repository"
    return IndexEntry(model.name, version, state, reason)
