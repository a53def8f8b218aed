import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest

from serving.errors import UnknownModel
from serving.imaging import crop
from serving.inference.classifier import Classifier
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.samples.photograph import photograph
from tests.repository.rollout import Images, index, recognize_all, until_stable, write_routing
from tests.support.calls import TIMEOUT
from tests.support.metrics import until, value
from tests.support.model_files import SPECK, publish, publish_contract_1, publish_shifted, publish_whole
from tests.support.servers import StartServer


async def test_a_shadow_that_disagrees_is_counted_and_never_answers(
    start_server: StartServer, model: Classifier, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish_shifted(tmp_path, 2)
    write_routing(tmp_path, "stable = 1\n[shadow]\nversion = 2")
    server = await start_server(None, models=tmp_path)
    got = await recognize_all(server, images[:200])
    assert [answer.digit for answer in got] == model.predict(images[:200]).argmax(axis=1).tolist()
    assert {answer.model_version for answer in got} == {"1"}
    await until(server.metrics.registry, "digits_shadow_images_total", 200, version="2", outcome="disagreed")
    assert value(server.metrics.registry, "digits_shadow_images_total") == 200
    assert index(server)["digits", "2"] == ("UNAVAILABLE", "shadow")
    with pytest.raises(UnknownModel, match="version '2' of model 'digits' doesn't answer here"):
        server.repository.catalog.route(version="2")


async def test_a_shadow_is_compared_only_on_images_with_ink(
    start_server: StartServer, model: Classifier, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    write_routing(tmp_path, "stable = 1\n[shadow]\nversion = 2")
    server = await start_server(None, models=tmp_path)
    some_blank = images[:50].copy()
    some_blank[::5] = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        request = pb.RecognizeBatchRequest(images=some_blank.tobytes())
        answer = await DigitServiceStub(channel).RecognizeBatch(request, timeout=TIMEOUT)
    assert len(answer.digits) == 50
    registry = server.metrics.registry
    await until(registry, "digits_shadow_images_total", 40, outcome="agreed")
    assert value(registry, "digits_shadow_images_total") == value(registry, "digits_predictions_total") == 40


async def test_a_shadow_counts_agreement_and_skips_when_it_falls_behind(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    write_routing(tmp_path, "stable = 1\n[shadow]\nversion = 2")
    server = await start_server(None, models=tmp_path, max_batch_size=1, instances=1)
    await asyncio.gather(*(recognize_all(server, images[:100]) for _ in range(5)))
    registry = server.metrics.registry
    async with asyncio.timeout(TIMEOUT):
        while value(registry, "digits_shadow_images_total") < 500:
            await asyncio.sleep(0.01)
    assert value(registry, "digits_shadow_images_total", outcome="agreed") > 0
    assert value(registry, "digits_shadow_images_total", outcome="skipped") > 0
    assert value(registry, "digits_shadow_images_total", outcome="disagreed") == 0


async def test_a_version_that_is_no_longer_stable_feeds_no_shadow(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    for version in (1, 2, 3):
        publish(tmp_path, version)
    write_routing(tmp_path, "stable = 1\n[canary]\nversion = 2\npercent = 100\n[shadow]\nversion = 3")
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    write_routing(tmp_path, "stable = 2\n[canary]\nversion = 1\npercent = 100\n[shadow]\nversion = 3")
    await until_stable(server, "2")
    assert {answer.model_version for answer in await recognize_all(server, images[:50])} == {"1"}
    stable, canary = server.repository.catalog.answering()
    assert (stable.shadow is None, canary.shadow is None) == (False, True)
    assert value(server.metrics.registry, "digits_shadow_images_total") == 0, "the canary's answers are not compared"
    write_routing(tmp_path, "stable = 2")
    await until(server.metrics.registry, "digits_model_role", 0, role="shadow")
    assert server.repository.catalog.answering() == [stable]
    assert stable.shadow is None


async def test_a_shadow_is_not_compared_on_crops_that_the_framer_doubts(
    start_server: StartServer, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2):
        publish_whole(tmp_path, version)
    write_routing(tmp_path, "stable = 1\n[shadow]\nversion = 2")
    crops = [photograph(image, np.random.default_rng(1)) for image in images[:4]]
    frame_crop = crop.frame_crop
    monkeypatch.setattr(
        crop, "frame_crop", lambda content: frame_crop(content)._replace(whole=content not in (crops[0], crops[2]))
    )
    server = await start_server(None, models=tmp_path)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        await DigitServiceStub(channel).RecognizeBatch(pb.RecognizeBatchRequest(crops=crops), timeout=TIMEOUT)
    await until(server.metrics.registry, "digits_shadow_images_total", 2, outcome="agreed")
    assert value(server.metrics.registry, "digits_shadow_images_total") == 2


async def test_a_shadow_agrees_where_both_find_no_digit(start_server: StartServer, images: Images, tmp_path: Path) -> None:
    publish_contract_1(tmp_path, 1)
    for version in (2, 3):
        publish_whole(tmp_path, version)
    publish_whole(tmp_path, 4, shifted=True)
    shown = np.stack([SPECK, *images[:3]])
    for stable, shadow, outcomes in (
        (2, 3, {"agreed": 4, "disagreed": 0}),
        (1, 3, {"agreed": 3, "disagreed": 1}),
        (2, 4, {"agreed": 1, "disagreed": 3}),
    ):
        write_routing(tmp_path, f"stable = {stable}\n[shadow]\nversion = {shadow}")
        server = await start_server(None, models=tmp_path)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            await DigitServiceStub(channel).RecognizeBatch(pb.RecognizeBatchRequest(images=shown.tobytes()), timeout=TIMEOUT)
        for outcome, count in outcomes.items():
            await until(server.metrics.registry, "digits_shadow_images_total", count, outcome=outcome)
