"""Loader of model versions: has a file examined and opened beside those that serve, and drains a version that is retired."""

import asyncio
import contextlib
import ctypes
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from serving.inference.batcher import Batcher
from serving.inference.classifier import Classifier
from serving.inference.metadata import ENVIRONMENT, ModelError
from serving.repository.catalog import Loaded, Refusal, ServedModel
from serving.repository.quarantine.quarantine import OpenVersion
from serving.repository.shadow import Shadow
from serving.repository.versions import ModelVersion
from serving.settings import Settings
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics

log = logging.getLogger(__name__)

# Shorter runs are done on the event loop: waking a thread, and then the loop again, takes about as long as a run of one or
# two images. A GPU run always gets a thread, because the interpreter is free to do other work meanwhile.
_BRIEF_SECONDS = 0.001

# The pause before a version that failed for a cause outside its file is tried again doubles from try to try.
_FIRST_PAUSE_SECONDS = 1.0
_LAST_PAUSE_SECONDS = 60.0

# A version takes about a second. One that takes longer than this no longer keeps another version from its role.
_PATIENCE_SECONDS = 5.0


@dataclass(eq=False)
class _Load:
    """A version on its way from its file to a role.

    Attributes:
        task: opens the file; ends with None if the version is refused.
        began: start time, `time.monotonic`.
    """

    task: "asyncio.Task[Classifier | None]"
    began: float

    def is_recent(self) -> bool:
        """Returns True while the load has not taken long."""
        return time.monotonic() < self.began + _PATIENCE_SECONDS


class Loader:
    """Loads versions beside those that serve, and closes the versions that have lost their role."""

    def __init__(self, settings: Settings, metrics: Metrics, open_version: OpenVersion, on_loaded: Callable[[str], object]):
        """Loads nothing yet.

        Args:
            settings: execution provider, batching and queue limits.
            metrics: counts refusals, and everything that the versions do.
            open_version: opens and checks one version; raises ModelError.
            on_loaded: called with the name of the model once one of its versions is loaded or refused.
        """
        self._settings = settings
        self._metrics = metrics
        self._open_version = open_version
        self._on_loaded = on_loaded
        self._loads: dict[tuple[str, ModelVersion], _Load] = {}
        self._retiring: set[asyncio.Task[int]] = set()

    def obtain(self, model: ServedModel, source: ModelVersion) -> Loaded | None:
        """Returns a version once it is loaded. Until then, and if it can't be served, returns None.

        The first call begins to load the version. It is also loaded again when a refusal has ended, or is to be retried.
        """
        load = self._loads.get((model.name, source))
        if load is None:
            if source.number not in model.refused or time.monotonic() >= model.refused[source.number].retry_at:
                self._begin(model, source)
            return None
        if not load.task.done():
            return None
        opened = load.task.result()  # not None: the load of a refused version is forgotten when it ends
        del self._loads[model.name, source]
        return self._accept(model, source, opened) if opened else None

    def waits_for(self, model: ServedModel, source: ModelVersion) -> bool:
        """Returns True while a version is loading that should have its role before any other version gets it."""
        load = self._loads.get((model.name, source))
        return load is not None and load.is_recent()

    def loading(self, name: str) -> "set[asyncio.Task[Classifier | None]]":
        """Returns the loads of a model."""
        return {load.task for (model, _), load in self._loads.items() if model == name}

    def loading_soon(self, name: str) -> bool:
        """Returns True if a version of a model is loading that has not taken long yet."""
        return any(model == name and load.is_recent() for (model, _), load in self._loads.items())

    def drop_all_but(self, model: ServedModel, wanted: Collection[ModelVersion]) -> None:
        """Ends the loads of a model that are not wanted any more."""
        for name, source in [*self._loads]:
            if name == model.name and source not in wanted:
                self._loads.pop((name, source)).task.cancel()

    def forget_refusal(self, model: ServedModel, number: int) -> None:
        """Ends a refusal."""
        refusal = model.refused.pop(number)
        self._metrics.model_refused.labels(model.name, str(number), refusal.kind).set(0)

    def set_shadow(self, loaded: Loaded, shadow: Loaded | None) -> None:
        """Starts, keeps or ends the comparison of a version with its shadow.

        Args:
            loaded: version whose answers are compared.
            shadow: version that reads the same images; None ends the comparison.
        """
        if loaded.shadow and not (shadow and loaded.shadow.model is shadow.model):
            loaded.shadow.stop()
            loaded.shadow = None
        if shadow and not loaded.shadow:
            loaded.shadow = Shadow(
                shadow.model,
                self._metrics,
                shadow.name,
                shadow.version,
                max_batch_size=self._settings.max_batch_size,
                idle=loaded.batcher.idle,
            )

    def set_info(self, loaded: Loaded, *, serving: bool) -> None:
        """Sets the metrics that describe a version: its properties, 0 once retired, and its drift reference."""
        metadata = loaded.model.metadata
        properties = (metadata.recipe, f"{metadata.test_accuracy:.4f}", metadata.contract)
        self._metrics.model_info.labels(loaded.name, loaded.version, *properties).set(serving)
        for feature, shares in metadata.drift_reference.items():
            for name, share in shares.items():
                self._metrics.drift_reference.labels(loaded.name, loaded.version, feature, name).set(share)

    def retire(self, loaded: Loaded) -> asyncio.Task[int]:
        """Starts to drain a version that has no role any more, and frees its memory.

        Returns:
            Task that ends once the version is closed, with its number of runs that have not ended.
        """
        self.set_info(loaded, serving=False)
        task = asyncio.create_task(self._retire(loaded))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    async def close(self, versions: Iterable[Loaded], grace_seconds: float) -> int:
        """Drains `versions` and those that are being retired; after the grace period, waiting requests end as Stopping.

        Returns:
            Number of runs that have not ended. A run can't be cancelled: its thread lives on.
        """
        loads = [load.task for load in self._loads.values()]
        for task in loads:
            task.cancel()
        closing = [asyncio.create_task(_close(loaded, grace_seconds)) for loaded in versions]
        stuck = sum(await asyncio.gather(*closing))
        if self._retiring:
            _, late = await asyncio.wait(self._retiring, timeout=0 if stuck else grace_seconds)
            stuck += len(late)
        await asyncio.gather(*loads, return_exceptions=True)  # they end at once
        return stuck

    def _begin(self, model: ServedModel, source: ModelVersion) -> None:
        version = str(source.number)
        message = f"loading {model.name} version {version}"
        log_event(log, logging.INFO, "model_loading", message, model=model.name, version=version)
        model.loading.append(source.number)
        task = asyncio.create_task(self._open(model, source))
        self._loads[model.name, source] = _Load(task, time.monotonic())
        task.add_done_callback(lambda task: self._end(model, source, task))

    async def _open(self, model: ServedModel, source: ModelVersion) -> Classifier | None:
        try:
            return await self._open_version(source, model.asked)
        except ModelError as error:
            self._refuse(model, source, error)
        except Exception as error:
            log.exception("loading %s version %d failed", model.name, source.number)
            self._refuse(model, source, ModelError(ENVIRONMENT, f"was not loaded: {type(error).__name__}"))
        return None

    def _end(self, model: ServedModel, source: ModelVersion, task: "asyncio.Task[Classifier | None]") -> None:
        model.loading.remove(source.number)
        if not task.cancelled():
            load = self._loads.get((model.name, source))
            if not task.result() and load and load.task is task:  # else it was dropped, and perhaps begun again
                del self._loads[model.name, source]
            self._on_loaded(model.name)

    def _accept(self, model: ServedModel, source: ModelVersion, opened: Classifier) -> Loaded:
        """Gives an opened version its queue."""
        if source.number in model.refused:
            self.forget_refusal(model, source.number)
        version = str(source.number)
        metrics = VersionMetrics(self._metrics, model.name, version)
        batcher = Batcher(
            opened,
            metrics,
            instances=self._settings.instances,
            max_batch_size=self._settings.max_batch_size,
            max_queue_size=self._settings.max_queue_size,
            max_queue_delay_seconds=self._settings.max_queue_delay_ms / 1000,
            brief_seconds=_BRIEF_SECONDS if self._settings.provider == "cpu" else 0.0,
        )
        log_event(
            log,
            logging.INFO,
            "model_loaded",
            f"loaded {model.name} version {version} ({opened.metadata.recipe}, {opened.metadata.test_accuracy:.4f})",
            model=model.name,
            version=version,
            recipe=opened.metadata.recipe,
            test_accuracy=opened.metadata.test_accuracy,
        )
        if lack := opened.metadata.missing_certificate(self._settings.target_error_rate):
            message = f"{model.name} version {version} {lack}"
            log_event(log, logging.WARNING, "model_not_certified", message, model=model.name, version=version)
        return Loaded(model.name, version, source, opened, batcher, metrics)

    def _refuse(self, model: ServedModel, source: ModelVersion, error: ModelError) -> None:
        version = str(source.number)
        before = model.refused.get(source.number)
        attempts = before.attempts + 1 if before else 1
        if before:
            self.forget_refusal(model, source.number)
        retry_at, retry = math.inf, ""
        if error.reason == ENVIRONMENT:
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(attempts - 1, 10), _LAST_PAUSE_SECONDS)
            retry_at, retry = time.monotonic() + pause, f"; trying again in {pause:g} s"
        model.refused[source.number] = Refusal(source, str(error), error.reason, attempts, retry_at)
        self._metrics.model_refused.labels(model.name, version, error.reason).set(1)
        message = f"refused {source.path}: it {error}{retry}"
        log_event(log, logging.ERROR, "model_refused", message, model=model.name, version=version, reason=error.reason)

    async def _retire(self, loaded: Loaded) -> int:
        stuck = await _close(loaded, self._settings.grace_seconds)
        del loaded  # drops the last reference to the session before memory is returned
        await asyncio.to_thread(_return_memory)
        return stuck


async def _close(loaded: Loaded, grace_seconds: float) -> int:
    if loaded.shadow:
        loaded.shadow.stop()
    return await loaded.batcher.close(grace_seconds)


def _return_memory() -> None:
    """Returns the memory of a closed model to the operating system.

    glibc keeps much of the freed memory: over 35 versions, one at a time, a process grew from 166 to 330 MB, and with
    malloc_trim to 182 MB. Other C libraries have no malloc_trim.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
