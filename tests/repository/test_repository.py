import asyncio
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from serving.api import digits
from serving.errors import LoadFailed, ModelNotReady, UnknownModel
from serving.inference.model import Model
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from serving.repository.routing import Routing, RoutingError
from serving.repository.versions import RepositoryError
from tests.conftest import TIMEOUT, GatedModel, StartServer, until, value
from tests.support.model_files import place, publish, publish_shifted

Images = NDArray[np.uint8]


async def answers(server: Server, images: Images, **request: Any) -> list[pb.RecognizeResponse]:
    """The answers to one call an image."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        calls = [stub.Recognize(pb.RecognizeRequest(image=image.tobytes(), **request), timeout=TIMEOUT) for image in images]
        return list(await asyncio.gather(*calls))


def index(server: Server) -> dict[tuple[str, str], tuple[str, str]]:
    """State and reason of every version."""
    return {(entry.name, entry.version): (entry.state, entry.reason) for entry in server.repository.index()}


async def serves(server: Server, version: str) -> None:
    """Waits until a version is stable."""
    async with asyncio.timeout(TIMEOUT):
        while server.repository.answering()[0].version != version:
            await asyncio.sleep(0.01)


async def refuses(server: Server, reason: str) -> None:
    await until(server.metrics.registry, "digits_model_refused", 1, reason=reason)


def route(models: Path, text: str) -> None:
    models.joinpath("digits", "new").write_text(text)
    models.joinpath("digits", "new").rename(models / "digits" / "routing.toml")


async def test_a_new_version_takes_over_while_calls_go_on_and_none_is_lost(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=0.05)
    seen: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)

        async def call_until_new() -> None:
            while not seen["2"]:
                answer = await stub.Recognize(pb.RecognizeRequest(image=images[0].tobytes()), timeout=TIMEOUT)
                seen[answer.model_version] += 1

        callers = [asyncio.create_task(call_until_new()) for _ in range(16)]
        while not seen["1"]:
            await asyncio.sleep(0.01)
        publish(tmp_path, 2)
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*callers)
    assert set(seen) == {"1", "2"}
    assert value(server.metrics.registry, "digits_requests_total") == seen.total()
    assert value(server.metrics.registry, "digits_model_info", version="1") == 0
    assert value(server.metrics.registry, "digits_model_info", version="2") == 1
    assert index(server) == {("digits", "1"): ("UNAVAILABLE", "it has no role"), ("digits", "2"): ("READY", "stable")}


async def test_a_broken_version_is_refused_with_its_reason_while_the_old_one_serves(
    start_server: StartServer, images: Images, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    place(tmp_path, 2).write_bytes(b"no model")
    await refuses(server, "unreadable")
    state, reason = index(server)["digits", "2"]
    assert state == "UNAVAILABLE"
    assert reason.startswith("cannot be loaded: ")
    assert str(tmp_path) not in reason, "a caller is told no path"
    assert str(tmp_path / "digits" / "2") in caplog.text
    assert [answer.model_version for answer in await answers(server, images[:2])] == ["1", "1"]
    publish(tmp_path, 2)  # mended
    await serves(server, "2")
    assert value(server.metrics.registry, "digits_model_refused") == 0


async def test_after_a_restart_the_highest_sound_version_serves(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    place(tmp_path, 3).write_bytes(publish(tmp_path, 4).read_bytes()[:1000])
    place(tmp_path, 4).write_bytes(b"")
    server = await start_server(None, models=tmp_path)
    assert server.repository.route().version == "2"
    assert value(server.metrics.registry, "digits_model_refused", reason="unreadable") == 2


async def test_a_file_overwritten_with_rubbish_or_deleted_while_it_serves_changes_no_answer(
    start_server: StartServer, model: Model, images: Images, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, 1)
    file = publish(tmp_path, 2)
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    expected = model.predict(images[:50]).argmax(axis=1).tolist()
    file.write_bytes(b"rubbish")
    await refuses(server, "unreadable")
    assert [answer.digit for answer in await answers(server, images[:50])] == expected
    assert index(server)["digits", "2"][0] == "READY"
    assert "stable; the file as it is now cannot be loaded" in index(server)["digits", "2"][1]
    shutil.rmtree(tmp_path / "digits")
    await until(server.metrics.registry, "digits_model_refused", 0)
    after = await answers(server, images[:50])
    assert [answer.digit for answer in after] == expected
    assert {answer.model_version for answer in after} == {"2"}
    assert index(server) == {("digits", "2"): ("READY", "stable; its file is gone from the repository")}
    shutil.rmtree(tmp_path)
    async with asyncio.timeout(TIMEOUT):
        while "cannot be read: No such file or directory; what is loaded goes on" not in caplog.text:
            await asyncio.sleep(0.01)
    assert len(await answers(server, images[:1])) == 1


async def test_a_file_that_is_still_being_written_is_left_alone(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = publish(tmp_path, 1).read_bytes()
    server = await start_server(None, models=tmp_path, poll_seconds=1000)
    with place(tmp_path, 2).open("wb") as file:
        for start in range(0, len(whole), len(whole) // 5):
            file.write(whole[start : start + len(whole) // 5])
            file.flush()
            await server.repository.refresh()
    await server.repository.refresh()
    await server.repository.refresh()
    assert server.repository.route().version == "2"
    assert "refused" not in caplog.text


async def test_a_version_taken_away_hands_over_to_the_one_before(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    assert server.repository.route().version == "2"
    shutil.rmtree(tmp_path / "digits" / "2")
    await serves(server, "1")


async def test_a_pinned_version_serves_and_newer_ones_wait(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    route(tmp_path, "stable = 1")
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    assert server.repository.route().version == "1"
    route(tmp_path, "stable = 2")
    await serves(server, "2")
    route(tmp_path, "stable = 7")
    await refuses(server, "missing")
    assert server.repository.route().version == "2"


async def test_a_canary_of_ten_percent_answers_ten_percent(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    route(tmp_path, "stable = 1\n[canary]\nversion = 2\npercent = 10")
    server = await start_server(None, models=tmp_path)
    assert index(server) == {("digits", "1"): ("READY", "stable"), ("digits", "2"): ("READY", "canary")}
    seen: Counter[str] = Counter()
    for _ in range(4):
        seen.update(answer.model_version for answer in await answers(server, images))
    share = seen["2"] / seen.total()
    assert seen.total() == 4000
    assert 0.1 - 5 * 0.0047 < share < 0.1 + 5 * 0.0047, "five standard deviations of a share of 0.1 among 4,000"
    assert value(server.metrics.registry, "digits_predictions_total", version="2") == seen["2"]


async def test_a_key_always_gets_the_same_version_and_keys_are_spread_as_asked(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    route(tmp_path, "stable = 1\n[canary]\nversion = 2\npercent = 30")
    server = await start_server(None, models=tmp_path)
    for key in ("sorter-1", "sorter-2", "sorter-3", "sorter-4", "sorter-5"):
        assert len({answer.model_version for answer in await answers(server, images[:30], key=key)}) == 1
    versions = Counter(server.repository.route(key=f"piece {n}").version for n in range(10_000))
    assert 0.27 < versions["2"] / 10_000 < 0.33
    assert [server.repository.route(key=f"piece {n}").version for n in range(20)] == list("12111112121221211111")


async def test_a_shadow_that_disagrees_is_counted_and_never_answers(
    start_server: StartServer, model: Model, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish_shifted(tmp_path, 2)
    route(tmp_path, "stable = 1\n[shadow]\nversion = 2")
    server = await start_server(None, models=tmp_path)
    got = await answers(server, images[:200])
    assert [answer.digit for answer in got] == model.predict(images[:200]).argmax(axis=1).tolist()
    assert {answer.model_version for answer in got} == {"1"}
    await until(server.metrics.registry, "digits_shadow_images_total", 200, version="2", outcome="disagreed")
    assert value(server.metrics.registry, "digits_shadow_images_total") == 200
    assert index(server)["digits", "2"] == ("UNAVAILABLE", "shadow")
    with pytest.raises(UnknownModel, match="version '2' of model 'digits' doesn't answer here"):
        server.repository.route(version="2")


async def test_a_shadow_is_compared_on_what_shows_ink(
    start_server: StartServer, model: Model, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    route(tmp_path, "stable = 1\n[shadow]\nversion = 2")
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


async def test_a_shadow_that_agrees_is_counted_as_that_and_one_that_falls_behind_skips(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    route(tmp_path, "stable = 1\n[shadow]\nversion = 2")
    server = await start_server(None, models=tmp_path, max_batch_size=1, instances=1)
    await asyncio.gather(*(answers(server, images[:100]) for _ in range(5)))
    registry = server.metrics.registry
    async with asyncio.timeout(TIMEOUT):
        while value(registry, "digits_shadow_images_total") < 500:
            await asyncio.sleep(0.01)
    assert value(registry, "digits_shadow_images_total", outcome="agreed") > 0
    assert value(registry, "digits_shadow_images_total", outcome="skipped") > 0
    assert value(registry, "digits_shadow_images_total", outcome="disagreed") == 0


async def test_a_canary_becomes_stable_without_being_loaded_again(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    route(tmp_path, "stable = 1\n[canary]\nversion = 2\npercent = 50")
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    canary = server.repository.answering()[1]
    route(tmp_path, "stable = 2")
    await serves(server, "2")
    assert server.repository.answering() == [canary]
    assert value(server.metrics.registry, "digits_model_role", version="2", role="canary") == 0
    assert value(server.metrics.registry, "digits_model_role", version="2", role="stable") == 1


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("stable = 'newest'", "stable: Input should be a valid integer"),
        ("stable = 1\n[canary]\nversion = 1\npercent = 5", "a version can have one role only"),
        ("stable = 1\n[canary]\nversion = 2\npercent = 101", "canary.percent: Input should be less than or equal to 100"),
        ("[canary]\nversion = 2", "canary.percent: Field required"),
        ("[shadow]\nversion = 2", "beside a canary or a shadow, stable must be named"),
        ("canry = 3", "canry: Extra inputs are not permitted"),
        ("stable =", "Invalid value (at end of document)"),
        ("stable = " + "1" * 5000, "Exceeds the limit"),
        ("x = " + "[" * 20_000, "recursion"),
    ],
)
async def test_a_routing_that_cannot_be_followed_is_told_and_the_one_before_stays(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, mistake: str
) -> None:
    with pytest.raises(RoutingError, match=mistake.replace("(", r"\(").replace(")", r"\)")):
        Routing.parse(text)
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    route(tmp_path, "stable = 1")
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    route(tmp_path, text)
    await refuses(server, "routing")
    assert mistake in caplog.text
    assert server.repository.route().version == "1"
    route(tmp_path, "stable = 2")
    await serves(server, "2")
    assert value(server.metrics.registry, "digits_model_refused") == 0


async def test_several_models_serve_side_by_side(
    start_server: StartServer, model: Model, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish_shifted(tmp_path / "other", 7)
    (tmp_path / "other" / "digits").rename(tmp_path / "shifted")
    (tmp_path / "other").rmdir()
    server = await start_server(None, models=tmp_path)
    read = model.predict(images[:20]).argmax(axis=1)
    assert [answer.digit for answer in await answers(server, images[:20])] == read.tolist()
    assert [answer.digit for answer in await answers(server, images[:20], model="shifted")] == ((read + 1) % 10).tolist()
    assert value(server.metrics.registry, "digits_predictions_total", model="shifted", version="7") == 20
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await answers(server, images[:1], model="letters")
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
    assert refusal.value.details() == "there is no model 'letters'"


async def test_an_unloaded_model_answers_what_it_has_and_then_no_more_until_it_is_loaded(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path)
    waiting = [asyncio.create_task(server.repository.route().batcher.submit(images.tobytes())) for _ in range(4)]
    await asyncio.sleep(0)  # they are in the queue
    await server.repository.unload("digits")
    assert [len(task.result().rows) for task in waiting] == [len(images)] * 4
    with pytest.raises(ModelNotReady):
        server.repository.route()
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await answers(server, images[:1])
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert index(server) == {("digits", "1"): ("UNAVAILABLE", "unloaded")}
    await server.repository.refresh()
    with pytest.raises(ModelNotReady):
        server.repository.route()
    await server.repository.load("digits")
    assert len(await answers(server, images[:1])) == 1


async def test_readiness_follows_the_default_model(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=digits.NAME), timeout=TIMEOUT)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await server.repository.unload("digits")
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.repository.load("digits")
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_loading_says_what_is_wrong_and_what_goes_on(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=1000)
    place(tmp_path, 2).write_bytes(b"no model")
    with pytest.raises(LoadFailed, match=r"version 2 cannot be loaded: .*; version 1 goes on$"):
        await server.repository.load("digits")
    with pytest.raises(UnknownModel):
        await server.repository.load("letters")
    with pytest.raises(UnknownModel):
        await server.repository.unload("letters")
    publish(tmp_path, 2)
    await server.repository.load("digits")
    assert server.repository.route().version == "2"


async def test_a_repository_without_a_sound_default_model_is_refused_with_every_reason(
    start_server: StartServer, tmp_path: Path
) -> None:
    place(tmp_path, 1).write_bytes(b"no model")
    place(tmp_path, 2).write_bytes(b"")
    with pytest.raises(RepositoryError, match=r"2/model.onnx cannot be loaded.*1/model.onnx cannot be loaded"):
        await start_server(None, models=tmp_path)


async def test_a_routing_that_is_being_rewritten_is_left_alone(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    route(tmp_path, "stable = 1")
    server = await start_server(None, models=tmp_path, poll_seconds=1000)
    for text in ("", "stable = 2\n[canary]\nversion", "stable = 1\n[shadow]\nversion = 2"):  # cut off twice, then whole
        (tmp_path / "digits" / "routing.toml").write_text(text)
        await server.repository.refresh()
        assert [loaded.version for loaded in server.repository.answering()] == ["1"]
    assert value(server.metrics.registry, "digits_model_refused") == 0
    await server.repository.refresh()
    assert index(server)["digits", "2"] == ("UNAVAILABLE", "shadow")
    (tmp_path / "digits" / "routing.toml").unlink()
    await server.repository.refresh()
    assert server.repository.route().version == "1"
    await server.repository.refresh()
    assert server.repository.route().version == "2"


@pytest.mark.parametrize("rubbish", [b"stable = one", b"stable = 1 # \xff"])
async def test_a_start_with_a_routing_that_cannot_be_followed_is_refused(
    start_server: StartServer, tmp_path: Path, rubbish: bytes
) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    (tmp_path / "digits" / "routing.toml").write_bytes(rubbish)
    with pytest.raises(RepositoryError, match=r"digits/routing\.toml: "):
        await start_server(None, models=tmp_path)


async def test_a_repository_that_cannot_be_read_is_refused(start_server: StartServer, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="nowhere cannot be read: No such file or directory"):
        await start_server(None, models=tmp_path / "nowhere")


async def test_a_file_that_breaks_in_a_way_nobody_thought_of_is_refused_and_the_watch_goes_on(
    start_server: StartServer, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    whole = onnx.load(publish(tmp_path / "aside", 2))
    (recipe,) = (entry.value.encode() for entry in whole.metadata_props if entry.key == "recipe")
    broken = whole.SerializeToString().replace(recipe, b"\xff" * len(recipe))
    place(tmp_path, 2).write_bytes(broken)  # metadata that are no UTF-8
    await refuses(server, "unreadable")
    assert index(server)["digits", "2"][1].startswith("cannot be loaded: ")
    publish(tmp_path, 3)
    await serves(server, "3")


async def test_whoever_is_no_longer_stable_hands_nothing_to_the_shadow(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    for version in (1, 2, 3):
        publish(tmp_path, version)
    route(tmp_path, "stable = 1\n[canary]\nversion = 2\npercent = 100\n[shadow]\nversion = 3")
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    route(tmp_path, "stable = 2\n[canary]\nversion = 1\npercent = 100\n[shadow]\nversion = 3")
    await serves(server, "2")
    assert {answer.model_version for answer in await answers(server, images[:50])} == {"1"}
    stable, canary = server.repository.answering()
    assert (stable.shadow is None, canary.shadow is None) == (False, True)
    assert value(server.metrics.registry, "digits_shadow_images_total") == 0, "the canary's answers are not compared"
    route(tmp_path, "stable = 2")
    await until(server.metrics.registry, "digits_model_role", 0, role="shadow")
    assert server.repository.answering() == [stable]
    assert stable.shadow is None


async def test_an_unload_goes_on_when_the_caller_who_asked_for_it_gives_up(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    running = asyncio.create_task(server.repository.route().batcher.submit(images[:1].tobytes()))
    await gated.run_starts()
    unloading = asyncio.create_task(server.repository.unload("digits"))
    async with asyncio.timeout(TIMEOUT):
        while server.repository.answering():
            await asyncio.sleep(0)
    unloading.cancel()
    gated.open()
    assert len((await running).rows) == 1
    await server.repository.load("digits")
    assert len((await server.repository.route().batcher.submit(images[:1].tobytes())).rows) == 1


async def test_a_version_written_anew_is_told_as_it_is_now(start_server: StartServer, tmp_path: Path) -> None:
    file = publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    model = onnx.load(file)
    next(entry for entry in model.metadata_props if entry.key == "recipe").value = "another"
    onnx.save(model, file)
    await until(server.metrics.registry, "digits_model_info", 1, recipe="another")
    assert value(server.metrics.registry, "digits_model_info") == 1


async def test_a_directory_that_is_no_name_or_cannot_be_read_keeps_nobody_from_serving(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    unspeakable = os.fsencode(tmp_path) + b"/\xff\xfe"
    shutil.copytree(tmp_path / "digits", os.fsdecode(unspeakable))
    publish(tmp_path, 1, "other")
    (tmp_path / "other" / "routing.toml").mkdir()
    server = await start_server(None, models=tmp_path)
    assert index(server) == {("digits", "1"): ("READY", "stable"), ("other", "1"): ("UNAVAILABLE", "it has no role")}
    assert len(await answers(server, images[:1])) == 1
    assert value(server.metrics.registry, "digits_model_refused", model="other", reason="routing") == 1
