import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from prometheus_client import Metric
from prometheus_client.registry import Collector

from serving.api import open_inference
from serving.inference.classifier import Classifier
from serving.pb.inference import open_inference_pb2 as pb
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.support import model_files
from tests.support.calls import TIMEOUT, refused
from tests.support.infer_calls import connect, image_request, infer
from tests.support.servers import StartServer

Images = NDArray[np.uint8]

CODE = grpc.StatusCode


async def test_models_and_versions_answer_by_name_and_a_key_keeps_its_version(
    start_server: StartServer, two_models: Path, images: Images
) -> None:
    server = await start_server(None, models=two_models, max_batch_size=8)
    async with connect(server) as stub:

        async def answered_by(**fields: Any) -> tuple[str, str]:
            answer = await infer(stub, image_request(images[:1], **fields))
            return answer.model_name, answer.model_version

        assert await answered_by(model_name="post") == ("post", "7")
        assert await answered_by(model_name="digits", model_version="1") == ("digits", "1")
        assert await answered_by(model_name="digits", model_version="2") == ("digits", "2")
        versions = set()
        for number in range(40):
            key = {"key": pb.InferParameter(string_param=f"piece {number}")}
            answers = {await answered_by(parameters=key) for _ in range(3)}
            assert len(answers) == 1
            versions.add(answers.pop()[1])
        assert versions == {"1", "2"}

        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="digits"), timeout=TIMEOUT)
        assert list(metadata.versions) == ["1", "2"]
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="digits", version="2"), timeout=TIMEOUT)
        assert list(metadata.versions) == ["2"]
        statistics = (await stub.ModelStatistics(pb.ModelStatisticsRequest(), timeout=TIMEOUT)).model_stats
        counts = {(entry.name, entry.version): entry.inference_stats.success.count for entry in statistics}
        assert set(counts) == {("digits", "1"), ("digits", "2"), ("post", "7")}
        assert counts["digits", "1"] + counts["digits", "2"] == 2 + 3 * 40
        assert counts["post", "7"] == 1


class ScrapeCounter(Collector):
    """Counts the collections of metrics."""

    count = 0

    def collect(self) -> Iterator[Metric]:
        self.count += 1
        return iter(())


async def test_statistics_collect_the_metrics_once_and_wait_for_no_model_load(
    start_server: StartServer, two_models: Path
) -> None:
    server = await start_server(None, models=two_models, max_batch_size=8, poll_seconds=TIMEOUT)
    scrapes = ScrapeCounter()
    server.metrics.registry.register(scrapes)
    before = scrapes.count
    event_loop, loaded = asyncio.get_running_loop(), threading.Event()
    event_loop.set_default_executor(ThreadPoolExecutor(1))
    loading = event_loop.run_in_executor(None, loaded.wait, TIMEOUT)  # models are loaded on the default executor
    async with connect(server) as stub:
        answer = await stub.ModelStatistics(pb.ModelStatisticsRequest(), timeout=TIMEOUT / 2)
    loaded.set()
    assert await loading
    assert [(entry.name, entry.version) for entry in answer.model_stats] == [("digits", "1"), ("digits", "2"), ("post", "7")]
    assert scrapes.count == before + 1


async def test_every_method_refuses_an_unavailable_model_in_the_same_words(
    start_server: StartServer, images: Images
) -> None:
    server = await start_server()
    async with connect(server) as stub:
        for name, version in (("letters", ""), ("digits", "1"), ("", "newest"), ("digits", "")):
            if not version and name == "digits":
                await server.repository.unload(name)
            expected = await refused(infer(stub, image_request(images[:1], model_name=name, model_version=version)))
            for request, method in (
                (pb.ModelMetadataRequest(name=name, version=version), stub.ModelMetadata),
                (pb.ModelConfigRequest(name=name, version=version), stub.ModelConfig),
            ):
                error = await refused(method(request, timeout=TIMEOUT))
                assert (error.code(), error.details()) == (expected.code(), expected.details())
            ready = await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version), timeout=TIMEOUT)
            assert not ready.ready


async def test_an_empty_name_means_the_default_model(inference_stub: GRPCInferenceServiceStub, model: Classifier) -> None:
    stub = inference_stub
    assert (await stub.ModelReady(pb.ModelReadyRequest(), timeout=TIMEOUT)).ready
    assert (await stub.ModelMetadata(pb.ModelMetadataRequest(), timeout=TIMEOUT)).name == "digits"
    assert (await stub.ModelConfig(pb.ModelConfigRequest(version=model.version), timeout=TIMEOUT)).config.name == "digits"


async def test_the_repository_index_lists_all_versions_or_only_ready_ones(
    start_server: StartServer, two_models: Path
) -> None:
    model_files.place(two_models, 3).write_bytes(b"no model")
    (two_models / "digits" / "routing.toml").unlink()
    server = await start_server(None, models=two_models, max_batch_size=8)
    async with connect(server) as stub:
        every = (await stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=TIMEOUT)).models
        ready = (await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), timeout=TIMEOUT)).models
    assert {(entry.name, entry.version): entry.state for entry in every} == {
        ("digits", "3"): "UNAVAILABLE",
        ("digits", "2"): "READY",
        ("digits", "1"): "UNAVAILABLE",
        ("post", "7"): "READY",
    }
    assert next(entry.reason for entry in every if entry.version == "3")
    assert {(entry.name, entry.version) for entry in ready} == {("digits", "2"), ("post", "7")}


async def test_a_named_repository_is_refused_as_unsupported(start_server: StartServer) -> None:
    server = await start_server(model_control=True)
    async with connect(server) as stub:
        load = pb.RepositoryModelLoadRequest(repository_name="mine", model_name="digits")
        unload = pb.RepositoryModelUnloadRequest(repository_name="mine", model_name="digits")
        for call in (
            stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="mine"), timeout=TIMEOUT),
            stub.RepositoryModelLoad(load, timeout=TIMEOUT),
            stub.RepositoryModelUnload(unload, timeout=TIMEOUT),
        ):
            error = await refused(call)
            assert error.code() is CODE.UNIMPLEMENTED
            assert error.details() == "there is no repository 'mine': this server has one, without a name"


async def test_a_draining_server_is_live_but_not_ready_and_still_answers(start_server: StartServer, images: Images) -> None:
    server = await start_server()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)

        async def status() -> tuple[bool, bool, int]:
            live = await stub.ServerLive(pb.ServerLiveRequest(), timeout=TIMEOUT)
            ready = await stub.ServerReady(pb.ServerReadyRequest(), timeout=TIMEOUT)
            request = health_pb2.HealthCheckRequest(service=open_inference.NAME)
            return live.live, ready.ready, (await health.Check(request, timeout=TIMEOUT)).status

        assert await status() == (True, True, health_pb2.HealthCheckResponse.SERVING)
        stopping = asyncio.create_task(server.stop(drain_seconds=TIMEOUT, grace_seconds=TIMEOUT))
        await asyncio.sleep(0)
        assert await status() == (True, False, health_pb2.HealthCheckResponse.NOT_SERVING)
        assert await infer(stub, image_request(images[:1]))
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
