"""Loader of model versions: opens a file, checks it, warms it up, and drains the version when it is retired."""

import asyncio
import contextlib
import ctypes
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from serving.inference.batcher import Batcher
from serving.inference.classifier import Classifier
from serving.inference.metadata import REFUSALS, ModelError
from serving.repository.catalog import Loaded, Refusal, ServedModel
from serving.repository.shadow import Shadow
from serving.repository.versions import ModelVersion
from serving.settings import Provider, Settings
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics

log = logging.getLogger(__name__)

# Shorter runs are done on the event loop: waking a thread, and then the loop again, takes about as long as a run of one or
# two images. A GPU run always gets a thread, because the interpreter is free to do other work meanwhile.
_BRIEF_SECONDS = 0.001

OpenModel = Callable[[Path, str, Provider], Classifier]


class Loader:
    """Loads versions beside those that serve, and closes the versions that have lost their role."""

    def __init__(self, settings: Settings, metrics: Metrics, open_model: OpenModel):
        """Loads nothing yet.

        Args:
            settings: execution provider, batching and queue limits.
            metrics: counts refusals, and everything that the versions do.
            open_model: opens and checks one file; raises ModelError.
        """
        self._settings = settings
        self._metrics = metrics
        self._open_model = open_model
        self._retiring: set[asyncio.Task[int]] = set()

    async def load(self, model: ServedModel, source: ModelVersion) -> Loaded | None:
        """Opens, checks and warms up a version on a thread; returns None, and records the reason, if it can't be served."""
        model.loading = source.number
        try:
            opened = await asyncio.to_thread(self._open, source)
        except ModelError as error:
            self._refuse(model, source, error)
            return None
        finally:
            model.loading = None
        metrics = VersionMetrics(self._metrics, model.name, opened.version)
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
            f"loaded {model.name} version {opened.version} ({opened.metadata.recipe}, {opened.metadata.test_accuracy:.4f})",
            model=model.name,
            version=opened.version,
            recipe=opened.metadata.recipe,
            test_accuracy=opened.metadata.test_accuracy,
        )
        if lack := opened.metadata.missing_certificate(self._settings.target_error_rate):
            message = f"{model.name} version {opened.version} {lack}"
            log_event(log, logging.WARNING, "model_not_certified", message, model=model.name, version=opened.version)
        return Loaded(model.name, opened.version, source, opened, batcher, metrics)

    def forget_refusal(self, model: ServedModel, number: int) -> None:
        """Lets a refused version be tried again."""
        del model.refused[number]
        for reason in REFUSALS:
            self._metrics.model_refused.labels(model.name, str(number), reason).set(0)

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
        closing = [asyncio.create_task(_close(loaded, grace_seconds)) for loaded in versions]
        stuck = sum(await asyncio.gather(*closing))
        if self._retiring:
            _, late = await asyncio.wait(self._retiring, timeout=0 if stuck else grace_seconds)
            stuck += len(late)
        return stuck

    def _open(self, source: ModelVersion) -> Classifier:
        opened = self._open_model(source.path, str(source.number), self._settings.provider)
        opened.warm_up(self._settings.max_batch_size)
        return opened

    def _refuse(self, model: ServedModel, source: ModelVersion, error: ModelError) -> None:
        version = str(source.number)
        model.refused[source.number] = Refusal(source, str(error))
        self._metrics.model_refused.labels(model.name, version, error.reason).set(1)
        message = f"refused {source.path}: it {error}"
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
