import asyncio
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.api import digits
from serving.errors import LoadFailed, ModelNotReady, UnknownModel
from serving.inference.classifier import Classifier
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.repository.repository import Repository
from serving.repository.versions import ModelVersion, RepositoryError
from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from tests.repository.rollout import Images, index, recognize_all, stable_version, until_refused, until_stable
from tests.support.calls import TIMEOUT
from tests.support.metrics import until, value
from tests.support.model_files import place, publish, publish_shifted
from tests.support.models import GatedModel
from tests.support.servers import StartServer


async def test_a_new_version_takes_over_under_load_and_no_call_is_lost(
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


async def test_a_broken_version_is_refused_with_a_reason_and_the_old_serves(
    start_server: StartServer, images: Images, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    place(tmp_path, 2).write_bytes(b"no model")
    await until_refused(server, "unreadable")
    state, reason = index(server)["digits", "2"]
    assert state == "UNAVAILABLE"
    assert reason.startswith("cannot be loaded: ")
    assert str(tmp_path) not in reason, "callers must not see paths"
    assert str(tmp_path / "digits" / "2") in caplog.text
    assert [answer.model_version for answer in await recognize_all(server, images[:2])] == ["1", "1"]
    publish(tmp_path, 2)  # repaired
    await until_stable(server, "2")
    assert value(server.metrics.registry, "digits_model_refused") == 0


async def test_after_a_restart_the_highest_valid_version_serves(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    place(tmp_path, 3).write_bytes(publish(tmp_path, 4).read_bytes()[:1000])
    place(tmp_path, 4).write_bytes(b"")
    server = await start_server(None, models=tmp_path)
    assert stable_version(server) == "2"
    assert value(server.metrics.registry, "digits_model_refused", reason="unreadable") == 2


async def test_a_serving_file_overwritten_or_deleted_changes_no_answer(
    start_server: StartServer, model: Classifier, images: Images, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, 1)
    file = publish(tmp_path, 2)
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    expected = model.predict(images[:50]).argmax(axis=1).tolist()
    file.write_bytes(b"not a model")
    await until_refused(server, "unreadable")
    assert [answer.digit for answer in await recognize_all(server, images[:50])] == expected
    assert index(server)["digits", "2"][0] == "READY"
    assert "stable; the file as it is now cannot be loaded" in index(server)["digits", "2"][1]
    shutil.rmtree(tmp_path / "digits")
    await until(server.metrics.registry, "digits_model_refused", 0)
    after = await recognize_all(server, images[:50])
    assert [answer.digit for answer in after] == expected
    assert {answer.model_version for answer in after} == {"2"}
    assert index(server) == {("digits", "2"): ("READY", "stable; its file is gone from the repository")}
    shutil.rmtree(tmp_path)
    async with asyncio.timeout(TIMEOUT):
        while "cannot be read: No such file or directory; loaded models keep serving" not in caplog.text:
            await asyncio.sleep(0.01)
    assert len(await recognize_all(server, images[:1])) == 1


async def test_a_file_is_not_loaded_while_it_is_being_written(
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
    await until_stable(server, "2")
    assert "refused" not in caplog.text


async def test_a_deleted_version_is_replaced_by_the_one_before(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    assert stable_version(server) == "2"
    shutil.rmtree(tmp_path / "digits" / "2")
    await until_stable(server, "1")


async def test_a_model_removed_while_it_loads_ends_its_load(model: Classifier, tmp_path: Path) -> None:
    opening, may_open = asyncio.Event(), asyncio.Event()

    async def open_version(source: ModelVersion, since: float) -> Classifier:
        opening.set()
        await may_open.wait()
        return GatedModel(model)

    publish(tmp_path, 1, "other")
    repository = Repository(Settings(models=tmp_path), Metrics(), open_version=open_version)
    loading = asyncio.create_task(repository.load("other"))
    async with asyncio.timeout(TIMEOUT):
        await opening.wait()
        shutil.rmtree(tmp_path / "other")
        await repository.refresh()
        may_open.set()
        with pytest.raises(LoadFailed, match="its stable version is not in the repository"):
            await loading
    assert repository.catalog.models["other"].loading == []
    await repository.close(0)


async def test_the_refusals_of_a_model_end_with_its_directory(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    place(tmp_path, 2, "other").write_bytes(b"no model")
    (tmp_path / "other" / "routing.toml").write_text("stable = 2\ncanary = {version = 3, percent = 10}\n")
    await until_refused(server, "unreadable")
    await until_refused(server, "missing")
    shutil.rmtree(tmp_path / "other")
    await until(server.metrics.registry, "digits_model_refused", 0)


async def test_several_models_serve_side_by_side(
    start_server: StartServer, model: Classifier, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    publish_shifted(tmp_path / "other", 7)
    (tmp_path / "other" / "digits").rename(tmp_path / "shifted")
    (tmp_path / "other").rmdir()
    server = await start_server(None, models=tmp_path)
    expected = model.predict(images[:20]).argmax(axis=1)
    assert [answer.digit for answer in await recognize_all(server, images[:20])] == expected.tolist()
    shifted = await recognize_all(server, images[:20], model="shifted")
    assert [answer.digit for answer in shifted] == ((expected + 1) % 10).tolist()
    assert value(server.metrics.registry, "digits_predictions_total", model="shifted", version="7") == 20
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await recognize_all(server, images[:1], model="letters")
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
    assert refusal.value.details() == "there is no model 'letters'"


async def test_an_unloaded_model_drains_and_answers_again_once_loaded(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path)
    waiting = [asyncio.create_task(server.repository.catalog.route().batcher.submit(images.tobytes())) for _ in range(4)]
    await asyncio.sleep(0)  # lets them reach the queue
    await server.repository.unload("digits")
    assert [len(task.result().rows) for task in waiting] == [len(images)] * 4
    with pytest.raises(ModelNotReady):
        server.repository.catalog.route()
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await recognize_all(server, images[:1])
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert index(server) == {("digits", "1"): ("UNAVAILABLE", "unloaded")}
    await server.repository.refresh()
    with pytest.raises(ModelNotReady):
        server.repository.catalog.route()
    await server.repository.load("digits")
    assert len(await recognize_all(server, images[:1])) == 1


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


async def test_a_failed_load_names_the_reason_and_the_version_that_serves(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=1000)
    place(tmp_path, 2).write_bytes(b"no model")
    with pytest.raises(LoadFailed, match=r"version 2 cannot be loaded: .*; version 1 keeps serving$"):
        await server.repository.load("digits")
    with pytest.raises(UnknownModel):
        await server.repository.load("letters")
    with pytest.raises(UnknownModel):
        await server.repository.unload("letters")
    publish(tmp_path, 2)
    await server.repository.load("digits")
    assert stable_version(server) == "2"


async def test_without_a_valid_default_model_the_start_fails_with_reasons(start_server: StartServer, tmp_path: Path) -> None:
    place(tmp_path, 1).write_bytes(b"no model")
    place(tmp_path, 2).write_bytes(b"")
    with pytest.raises(RepositoryError, match=r"2/model.onnx cannot be loaded.*1/model.onnx cannot be loaded"):
        await start_server(None, models=tmp_path)


async def test_an_unreadable_repository_fails_the_start(start_server: StartServer, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="nowhere cannot be read: No such file or directory"):
        await start_server(None, models=tmp_path / "nowhere")


async def test_an_unforeseen_fault_in_a_file_is_refused_and_polling_continues(
    start_server: StartServer, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    whole = onnx.load(publish(tmp_path / "aside", 2))
    (recipe,) = (entry.value.encode() for entry in whole.metadata_props if entry.key == "recipe")
    broken = whole.SerializeToString().replace(recipe, b"\xff" * len(recipe))
    place(tmp_path, 2).write_bytes(broken)  # metadata that is not UTF-8
    await until_refused(server, "unreadable")
    assert index(server)["digits", "2"][1].startswith("cannot be loaded: ")
    publish(tmp_path, 3)
    await until_stable(server, "3")


async def test_an_unload_completes_when_its_caller_gives_up(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    running = asyncio.create_task(server.repository.catalog.route().batcher.submit(images[:1].tobytes()))
    await gated.run_starts()
    unloading = asyncio.create_task(server.repository.unload("digits"))
    async with asyncio.timeout(TIMEOUT):
        while server.repository.catalog.answering():
            await asyncio.sleep(0)
    unloading.cancel()
    gated.open()
    assert len((await running).rows) == 1
    await server.repository.load("digits")
    assert len((await server.repository.catalog.route().batcher.submit(images[:1].tobytes())).rows) == 1


async def test_a_rewritten_version_shows_its_new_metadata(start_server: StartServer, tmp_path: Path) -> None:
    file = publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    model = onnx.load(file)
    next(entry for entry in model.metadata_props if entry.key == "recipe").value = "another"
    onnx.save(model, file)
    await until(server.metrics.registry, "digits_model_info", 1, recipe="another")
    assert value(server.metrics.registry, "digits_model_info") == 1


async def test_an_invalid_name_or_routing_of_one_model_stops_no_other_model(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    not_utf8 = os.fsencode(tmp_path) + b"/\xff\xfe"
    shutil.copytree(tmp_path / "digits", os.fsdecode(not_utf8))
    publish(tmp_path, 1, "other")
    (tmp_path / "other" / "routing.toml").mkdir()
    server = await start_server(None, models=tmp_path)
    assert index(server) == {("digits", "1"): ("READY", "stable"), ("other", "1"): ("UNAVAILABLE", "it has no role")}
    assert len(await recognize_all(server, images[:1])) == 1
    assert value(server.metrics.registry, "digits_model_refused", model="other", reason="routing") == 1
