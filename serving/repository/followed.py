"""Directory of one model, as far as the repository has followed it: its versions, and its routing.toml."""

import logging
from dataclasses import dataclass, field

from serving.repository.catalog import ServedModel
from serving.repository.routing import Routing, RoutingError
from serving.repository.versions import ModelDirectory, ModelVersion
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


@dataclass
class Followed:
    """Directory of one model, as far as it was followed.

    Attributes:
        directory: directory as of the last poll.
        routing_source: text of routing.toml, and the error of reading it, that were applied last.
        routing_error: reason why the current routing.toml can't be applied; empty if it is.
        missing: versions that the routing names, and that are not on disk.
        settled: versions whose files were unchanged between the last two polls.
    """

    directory: ModelDirectory = field(default_factory=ModelDirectory)
    routing_source: tuple[str, str] | None = None
    routing_error: str = ""
    missing: set[int] = field(default_factory=set)
    settled: dict[int, ModelVersion] = field(default_factory=dict)

    def apply_routing(self, model: ServedModel, metrics: Metrics) -> None:
        """Gives a model the routing of the directory. A file that is not valid leaves the routing as it was."""
        error = self.directory.routing_error
        try:
            routing = Routing.parse(self.directory.routing)
        except RoutingError as refusal:
            error = str(refusal)
        self.routing_error = error
        metrics.model_refused.labels(model.name, "", "routing").set(bool(error))
        if error:
            effect = "the previous routing stays" if model.routing else "the model is not loaded"
            message = f"{model.name}/routing.toml is not valid, {effect}: {error}"
            log_event(log, logging.ERROR, "routing_refused", message, model=model.name, reason=error)
            return
        if routing != (model.routing or Routing()):
            roles = routing.model_dump(exclude_none=True)
            message = f"{model.name}: routing {roles or 'by the highest version'}"
            log_event(log, logging.INFO, "routing_changed", message, model=model.name, routing=roles)
        model.routing = routing

    def report_missing(self, model: ServedModel, routing: Routing, metrics: Metrics) -> None:
        """Logs and counts the versions that the routing names, and that are not on disk."""
        missing = routing.named() - set(self.directory.versions)
        for number in missing - self.missing:
            message = f"{model.name}: routing names version {number}, which is not in the repository"
            log_event(log, logging.ERROR, "model_missing", message, model=model.name, version=str(number))
        for number in missing ^ self.missing:
            metrics.model_refused.labels(model.name, str(number), "missing").set(number in missing)
        self.missing = missing
