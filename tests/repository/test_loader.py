import asyncio
from pathlib import Path
from typing import Any

import pytest

from serving.errors import Stopping
from serving.inference.classifier import Classifier
from serving.inference.metadata import ModelError
from serving.repository.catalog import Loaded, ServedModel
from serving.repository.loader import Loader
from serving.repository.quarantine.quarantine import OpenVersion, Quarantine
from serving.repository.versions import ModelVersion, latest
from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from tests.repository.rollout import Images
from tests.support.calls import TIMEOUT
from tests.support.metrics import value
from tests.support.model_files import place, publish
from tests.support.models import GatedModel, opens


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def loader(metrics: Metrics, open_version: OpenVersion | None = None, **settings: Any) -> Loader:
    chosen = Settings(instances=1, **settings)
    return Loader(chosen, metrics, open_version or Quarantine(chosen).open, lambda name: None)


async def obtain(loader: Loader, model: ServedModel, source: ModelVersion) -> Loaded | None:
    """Loads a version; returns None if it is refused."""
    assert loader.obtain(model, source) is None, "it is loaded beside the event loop"
    await asyncio.wait(loader.loading(model.name), timeout=TIMEOUT)
    return loader.obtain(model, source)


async def load(loader: Loader, source: ModelVersion) -> Loaded:
    loaded = await obtain(loader, ServedModel("digits"), source)
    assert loaded
    return loaded


async def test_a_loaded_version_answers_and_carries_its_source(metrics: Metrics, images: Images, tmp_path: Path) -> None:
    publish(tmp_path, 7)
    source, opener = latest(tmp_path), loader(metrics)
    loaded = await load(opener, source)
    assert (loaded.name, loaded.version, loaded.source) == ("digits", "7", source)
    assert len((await loaded.batcher.submit(images[:3].tobytes())).rows) == 3
    assert await opener.close([loaded], TIMEOUT) == 0


async def test_an_invalid_file_is_refused_until_the_refusal_is_forgotten(metrics: Metrics, tmp_path: Path) -> None:
    place(tmp_path, 7).write_bytes(b"no model")
    source, opener, model = latest(tmp_path), loader(metrics), ServedModel("digits")
    assert await obtain(opener, model, source) is None
    assert model.loading == []
    assert model.refused[7].source == source
    assert model.refused[7].reason.startswith("cannot be loaded: ")
    refused = {"model": "digits", "version": "7", "reason": "unreadable"}
    assert value(metrics.registry, "digits_model_refused", **refused) == 1
    opener.forget_refusal(model, 7)
    assert not model.refused
    assert value(metrics.registry, "digits_model_refused", **refused) == 0


async def test_a_version_is_loading_until_it_is_opened_or_refused(
    metrics: Metrics, model: Classifier, bundled: ModelVersion
) -> None:
    served = ServedModel("digits")
    seen: list[list[int]] = []

    async def open_version(source: ModelVersion, since: float) -> Classifier:
        seen.append([*served.loading])
        return GatedModel(model)

    opener = loader(metrics, open_version)
    loaded = await obtain(opener, served, bundled)
    assert loaded
    assert (seen, served.loading) == ([[bundled.number]], [])
    await opener.close([loaded], TIMEOUT)


async def test_a_dropped_load_that_ends_does_not_end_its_successor(
    metrics: Metrics, model: Classifier, bundled: ModelVersion
) -> None:
    begun = 0

    async def refused_at_first(source: ModelVersion, since: float) -> Classifier:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise ModelError("unreadable", "cannot be loaded")
        await asyncio.sleep(0.05)
        return GatedModel(model)

    opener, served = loader(metrics, refused_at_first), ServedModel("digits")
    assert opener.obtain(served, bundled) is None
    (first,) = opener.loading("digits")
    while not first.done():
        await asyncio.sleep(0)
    opener.drop_all_but(served, ())
    opener.forget_refusal(served, bundled.number)
    loaded = await obtain(opener, served, bundled)
    assert loaded
    assert begun == 2
    await opener.close([loaded], TIMEOUT)


async def test_a_retired_version_answers_its_queue_and_then_stops(
    metrics: Metrics, gated: GatedModel, bundled: ModelVersion, images: Images
) -> None:
    opener = loader(metrics, opens(gated))
    loaded = await load(opener, bundled)
    opener.set_info(loaded, serving=True)
    running = asyncio.create_task(loaded.batcher.submit(images[:1].tobytes()))
    await gated.run_starts()
    waiting = asyncio.create_task(loaded.batcher.submit(images[:2].tobytes()))
    await asyncio.sleep(0)  # lets it reach the queue
    retired = opener.retire(loaded)
    assert value(metrics.registry, "digits_model_info") == 0
    gated.open()
    assert [len((await answer).rows) for answer in (running, waiting)] == [1, 2]
    assert await retired == 0
    with pytest.raises(Stopping):
        await loaded.batcher.submit(images[:1].tobytes())


async def test_closing_counts_runs_that_have_not_ended_retired_ones_too(
    metrics: Metrics, model: Classifier, bundled: ModelVersion, images: Images
) -> None:
    models = [GatedModel(model), GatedModel(model)]
    opener = loader(metrics, opens(*models), grace_seconds=TIMEOUT)
    versions = [await load(opener, bundled) for _ in models]
    calls = [asyncio.create_task(loaded.batcher.submit(images[:1].tobytes())) for loaded in versions]
    for gated in models:
        await gated.run_starts()
    retired = opener.retire(versions[0])
    assert await opener.close(versions[1:], grace_seconds=0) == 2
    for gated in models:
        gated.open()
    assert len((await calls[0]).rows) == 1, "a retired version keeps its own grace period"
    assert await retired == 0
    with pytest.raises(Stopping):
        await calls[1]


async def test_the_shadow_is_kept_while_its_model_stays_and_ends_with_none(
    metrics: Metrics, model: Classifier, bundled: ModelVersion
) -> None:
    opener = loader(metrics, opens(*(GatedModel(model) for _ in range(3))))
    stable, first, second = [await load(opener, bundled) for _ in range(3)]
    opener.set_shadow(stable, first)
    running = stable.shadow
    assert running
    assert running.model is first.model
    opener.set_shadow(stable, first)
    assert stable.shadow is running
    opener.set_shadow(stable, second)
    assert stable.shadow
    assert stable.shadow.model is second.model
    opener.set_shadow(stable, None)
    assert stable.shadow is None
    await opener.close([stable, first, second], TIMEOUT)
