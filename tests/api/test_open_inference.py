import asyncio
import json
import math
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from prometheus_client import Metric
from prometheus_client.registry import Collector

from serving.answers.decision import Decision
from serving.answers.recognition_id import RecognitionIds
from serving.api import open_inference
from serving.inference.model import Model
from serving.pb.digits.v1.digit_service_pb2 import RecognizeBatchRequest
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.pb.inference import open_inference_pb2 as pb
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serving.process.server import Server
from serving.samples.photograph import photograph
from tests.support import model_files
from tests.support.calls import TIMEOUT, refused
from tests.support.metrics import until, value
from tests.support.models import GatedModel
from tests.support.servers import StartServer

Images = NDArray[np.uint8]
Told = Any  # what JSON says

CODE = grpc.StatusCode


@pytest.fixture
async def stub(server: Server) -> AsyncIterator[GRPCInferenceServiceStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield GRPCInferenceServiceStub(channel)


def ask(images: Images, *outputs: str, raw: bool = True, **fields: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(**fields)
    tensor = request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    if raw:
        request.raw_input_contents.append(images.tobytes())
    else:
        tensor.contents.uint_contents.extend(images.ravel().tolist())
    for name in outputs:
        request.outputs.add(name=name)
    return request


async def infer(stub: GRPCInferenceServiceStub, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    answer: pb.ModelInferResponse = await stub.ModelInfer(request, timeout=TIMEOUT)
    return answer


async def story(name: str, server: Server, images: Images, tmp_path: Path) -> Told:
    """What tritonclient tells of its calls to a server, from a process of its own."""
    file = tmp_path / "images.npy"
    np.save(file, images)
    command = [sys.executable, "-m", "tests.support.triton_calls", name, f"127.0.0.1:{server.grpc_port}", str(file)]
    told = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=3 * TIMEOUT, check=False)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


@pytest.fixture
def expected(model: Model, images: Images) -> NDArray[np.float32]:
    """(1000, 20): logits, then probabilities, of the drawn digits."""
    return model.infer(images)


def assert_near(found: Any, expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(np.array(found).reshape(expected.shape), expected, atol=1e-4, rtol=1e-4)


async def test_raw_images_are_answered_raw_with_all_outputs(
    stub: GRPCInferenceServiceStub, model: Model, images: Images, expected: NDArray[np.float32]
) -> None:
    answer = await infer(stub, ask(images[:50], model_name="digits", id="piece 7"))
    assert (answer.model_name, answer.model_version, answer.id) == ("digits", model.version, "piece 7")
    assert [(output.name, output.datatype, list(output.shape)) for output in answer.outputs] == [
        ("logits", "FP32", [50, 10]),
        ("probabilities", "FP32", [50, 10]),
    ]
    assert not any(output.HasField("contents") for output in answer.outputs)
    logits, probabilities = (np.frombuffer(values, "<f4") for values in answer.raw_output_contents)
    assert_near(logits, expected[:50, :10])
    assert_near(probabilities, expected[:50, 10:])


async def test_typed_images_are_answered_typed(
    stub: GRPCInferenceServiceStub, images: Images, expected: NDArray[np.float32]
) -> None:
    answer = await infer(stub, ask(images[:50], raw=False))
    assert not answer.raw_output_contents
    logits, probabilities = (output.contents.fp32_contents for output in answer.outputs)
    assert_near(logits, expected[:50, :10])
    assert_near(probabilities, expected[:50, 10:])


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("outputs", [["logits"], ["probabilities"], ["probabilities", "logits"]])
async def test_the_outputs_asked_for_are_given_in_their_order(
    stub: GRPCInferenceServiceStub, images: Images, expected: NDArray[np.float32], outputs: list[str], raw: bool
) -> None:
    answer = await infer(stub, ask(images[:2], *outputs, raw=raw))
    assert [output.name for output in answer.outputs] == outputs
    columns = {"logits": expected[:2, :10], "probabilities": expected[:2, 10:]}
    for place, name in enumerate(outputs):
        if raw:
            assert_near(np.frombuffer(answer.raw_output_contents[place], "<f4"), columns[name])
        else:
            assert_near(answer.outputs[place].contents.fp32_contents, columns[name])


async def test_as_many_images_as_a_call_may_hold_are_answered_raw_and_typed(start_server: StartServer) -> None:
    server = await start_server(max_images_per_request=2000)
    white = np.full((2000, 28, 28), 255, np.uint8)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        for raw in (True, False):
            assert list((await infer(stub, ask(white, "logits", raw=raw))).outputs[0].shape) == [2000, 10]
        error = await refused(infer(stub, ask(np.concatenate([white, white[:1]]))))
        assert error.code() is CODE.INVALID_ARGUMENT
        assert error.details() == "images holds 2001 images, this server takes 2000 a call"


async def test_both_protocols_share_the_runs_of_the_model(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        recognize: Any = channel.unary_unary("/digits.v1.DigitService/Recognize")
        first = asyncio.ensure_future(infer(stub, ask(images[:1])))
        await gated.run_starts()
        others = [asyncio.ensure_future(infer(stub, ask(images[1:3])))]
        native = b"\x0a" + b"\x90\x06" + images[3].tobytes()  # field 1, 784 bytes
        others.append(asyncio.ensure_future(recognize(native, timeout=TIMEOUT)))
        await until(server.metrics.registry, "digits_queue_length_images", 3)
        gated.open()
        await asyncio.gather(first, *others)
    assert [len(batch) for batch in gated.batches] == [1, 3]


async def test_a_timeout_that_passes_ends_the_request_before_it_is_run(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        running = asyncio.ensure_future(infer(stub, ask(images[:1])))
        await gated.run_starts()
        for parameter in (pb.InferParameter(int64_param=100_000), pb.InferParameter(uint64_param=100_000)):
            error = await refused(infer(stub, ask(images[1:2], parameters={"timeout": parameter})))
            assert error.code() is CODE.DEADLINE_EXCEEDED
            assert error.details() == "the request's timeout passed before its answer was ready"
        assert value(server.metrics.registry, "digits_queue_length_images") == 0
        gated.open()
        await running
    assert len(gated.batches) == 1


@pytest.mark.parametrize("raw", [True, False])
async def test_a_generous_timeout_and_unknown_parameters_change_nothing(
    stub: GRPCInferenceServiceStub, images: Images, raw: bool
) -> None:
    parameters = {
        "timeout": pb.InferParameter(uint64_param=2**64 - 1),
        "priority": pb.InferParameter(uint64_param=1),
        "mine": pb.InferParameter(bool_param=True),
    }
    assert await infer(stub, ask(images[:1], raw=raw, parameters=parameters))
    assert await infer(stub, ask(images[:1], raw=raw, parameters={"timeout": pb.InferParameter(int64_param=0)}))


async def test_a_request_of_a_sequence_is_told_that_there_are_none(stub: GRPCInferenceServiceStub, images: Images) -> None:
    parameters = {"sequence_id": pb.InferParameter(int64_param=7), "sequence_start": pb.InferParameter(bool_param=True)}
    error = await refused(infer(stub, ask(images[:1], parameters=parameters)))
    assert error.code() is CODE.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("timeout", pb.InferParameter(int64_param=-1)),
        ("timeout", pb.InferParameter(string_param="1")),
        ("timeout", pb.InferParameter(double_param=math.nan)),
        ("timeout", pb.InferParameter()),
        ("key", pb.InferParameter(int64_param=1)),
        ("key", pb.InferParameter()),
    ],
)
async def test_a_parameter_of_the_wrong_type_is_refused(
    stub: GRPCInferenceServiceStub, images: Images, name: str, parameter: pb.InferParameter
) -> None:
    error = await refused(infer(stub, ask(images[:1], parameters={name: parameter})))
    assert error.code() is CODE.INVALID_ARGUMENT
    assert (error.details() or "").startswith(f"parameter {name} is not a ")


async def test_an_answer_that_fails_in_the_model_is_internal_and_the_next_one_comes(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    gated.open()
    server = await start_server(gated)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        error = await refused(infer(stub, ask(np.full((1, 28, 28), 255, np.uint8))))
        assert error.code() is CODE.INTERNAL
        assert await infer(stub, ask(images[:1]))


async def test_answers_of_a_stream_keep_the_order_of_requests_and_an_error_names_its_request(
    stub: GRPCInferenceServiceStub, images: Images, expected: NDArray[np.float32]
) -> None:
    requests = [ask(images[place : place + 1], "probabilities", id=str(place), raw=place % 2 == 0) for place in range(100)]
    requests[40] = ask(images[:1, :27], id="40")
    call = stub.ModelStreamInfer(iter(requests), timeout=TIMEOUT)
    answers: list[pb.ModelStreamInferResponse] = [answer async for answer in call]
    assert [answer.infer_response.id for answer in answers] == [str(place) for place in range(100)]
    failed = answers.pop(40)
    assert failed.error_message == "images has shape [1, 27, 28], expected images, UINT8 [n, 28, 28], n at least 1"
    assert not failed.infer_response.outputs
    for answer in answers:
        response, place = answer.infer_response, int(answer.infer_response.id)
        assert not answer.error_message
        assert bool(response.raw_output_contents) == (place % 2 == 0)
        if response.raw_output_contents:
            assert_near(np.frombuffer(response.raw_output_contents[0], "<f4"), expected[place, 10:])
        else:
            assert_near(response.outputs[0].contents.fp32_contents, expected[place, 10:])


@pytest.fixture
def two_versions(tmp_path: Path) -> Path:
    """A repository of version 1, stable, and version 2, a canary for half of the keys; and of another model, "post"."""
    for name, version in (("digits", 1), ("digits", 2), ("post", 7)):
        model_files.publish(tmp_path, version, name)
    (tmp_path / "digits" / "routing.toml").write_text("stable = 1\ncanary = { version = 2, percent = 50 }\n")
    return tmp_path


async def test_versions_and_models_are_found_by_name_and_a_key_stays_with_its_version(
    start_server: StartServer, two_versions: Path, images: Images
) -> None:
    server = await start_server(None, models=two_versions, max_batch_size=8)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)

        async def answered_by(**fields: Any) -> tuple[str, str]:
            answer = await infer(stub, ask(images[:1], **fields))
            return answer.model_name, answer.model_version

        assert await answered_by(model_name="post") == ("post", "7")
        assert await answered_by(model_name="digits", model_version="1") == ("digits", "1")
        assert await answered_by(model_name="digits", model_version="2") == ("digits", "2")
        by_key = {}
        for number in range(40):
            parameters = {"key": pb.InferParameter(string_param=f"piece {number}")}
            answers = {await answered_by(parameters=parameters) for _ in range(3)}
            assert len(answers) == 1
            by_key[number] = answers.pop()[1]
        assert set(by_key.values()) == {"1", "2"}

        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="digits"), timeout=TIMEOUT)
        assert list(metadata.versions) == ["1", "2"]
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="digits", version="2"), timeout=TIMEOUT)
        assert list(metadata.versions) == ["2"]
        everything = (await stub.ModelStatistics(pb.ModelStatisticsRequest(), timeout=TIMEOUT)).model_stats
        counts = {(entry.name, entry.version): entry.inference_stats.success.count for entry in everything}
        assert set(counts) == {("digits", "1"), ("digits", "2"), ("post", "7")}
        assert counts["digits", "1"] + counts["digits", "2"] == 2 + 3 * 40
        assert counts["post", "7"] == 1


class Scrapes(Collector):
    """Counts how often metrics are collected."""

    count = 0

    def collect(self) -> Iterator[Metric]:
        self.count += 1
        return iter(())


async def test_statistics_are_collected_once_for_all_versions_and_wait_for_no_files(
    start_server: StartServer, two_versions: Path
) -> None:
    server = await start_server(None, models=two_versions, max_batch_size=8, poll_seconds=TIMEOUT)
    scrapes = Scrapes()
    server.metrics.registry.register(scrapes)
    before = scrapes.count
    event_loop, loaded = asyncio.get_running_loop(), threading.Event()
    event_loop.set_default_executor(ThreadPoolExecutor(1))
    loading = event_loop.run_in_executor(None, loaded.wait, TIMEOUT)  # where models are loaded, and files are read
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        answer = await stub.ModelStatistics(pb.ModelStatisticsRequest(), timeout=TIMEOUT / 2)
    loaded.set()
    assert await loading
    assert [(entry.name, entry.version) for entry in answer.model_stats] == [("digits", "1"), ("digits", "2"), ("post", "7")]
    assert scrapes.count == before + 1


async def test_what_cannot_be_inferred_with_is_told_of_in_the_same_words_by_every_method(
    start_server: StartServer, images: Images
) -> None:
    server = await start_server()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        for name, version in (("letters", ""), ("digits", "1"), ("", "newest"), ("digits", "")):
            if not version and name == "digits":
                await server.repository.unload(name)
            told = await refused(infer(stub, ask(images[:1], model_name=name, model_version=version)))
            for request, method in (
                (pb.ModelMetadataRequest(name=name, version=version), stub.ModelMetadata),
                (pb.ModelConfigRequest(name=name, version=version), stub.ModelConfig),
            ):
                error = await refused(method(request, timeout=TIMEOUT))
                assert (error.code(), error.details()) == (told.code(), told.details())
            ready = await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version), timeout=TIMEOUT)
            assert not ready.ready


async def test_an_empty_name_is_the_default_model(stub: GRPCInferenceServiceStub, model: Model) -> None:
    assert (await stub.ModelReady(pb.ModelReadyRequest(), timeout=TIMEOUT)).ready
    assert (await stub.ModelMetadata(pb.ModelMetadataRequest(), timeout=TIMEOUT)).name == "digits"
    assert (await stub.ModelConfig(pb.ModelConfigRequest(version=model.version), timeout=TIMEOUT)).config.name == "digits"


async def test_the_index_can_leave_out_what_is_not_ready(start_server: StartServer, two_versions: Path) -> None:
    model_files.place(two_versions, 3).write_bytes(b"no model")
    (two_versions / "digits" / "routing.toml").unlink()
    server = await start_server(None, models=two_versions, max_batch_size=8)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
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


async def test_a_repository_by_name_is_not_supported(start_server: StartServer) -> None:
    server = await start_server(model_control=True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
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


async def test_readiness_drops_while_draining_and_liveness_does_not(start_server: StartServer, images: Images) -> None:
    server = await start_server()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)

        async def status() -> tuple[bool, bool, int]:
            live = await stub.ServerLive(pb.ServerLiveRequest(), timeout=TIMEOUT)
            ready = await stub.ServerReady(pb.ServerReadyRequest(), timeout=TIMEOUT)
            question = health_pb2.HealthCheckRequest(service=open_inference.NAME)
            return live.live, ready.ready, (await health.Check(question, timeout=TIMEOUT)).status

        assert await status() == (True, True, health_pb2.HealthCheckResponse.SERVING)
        stopping = asyncio.create_task(server.stop(drain_seconds=TIMEOUT, grace_seconds=TIMEOUT))
        await asyncio.sleep(0)
        assert await status() == (True, False, health_pb2.HealthCheckResponse.NOT_SERVING)
        assert await infer(stub, ask(images[:1]))
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)


async def test_tritonclient_learns_what_there_is(server: Server, model: Model, images: Images, tmp_path: Path) -> None:
    told = await story("metadata", server, images[:1], tmp_path)
    assert (told["live"], told["ready"], told["model ready"]) == (True, True, True)
    assert (told["other model ready"], told["other version ready"]) == (False, False)
    assert told["server"]["name"] == "postal-digits"
    assert told["server"]["extensions"] == ["model_configuration", "statistics"]
    assert told["model"] == {
        "name": "digits",
        "versions": [model.version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": ["-1", "28", "28"]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": ["-1", "10"]},
            {"name": "probabilities", "datatype": "FP32", "shape": ["-1", "10"]},
        ],
    }
    config = told["config"]["config"]
    assert config.pop("instance_group")[0]["kind"] == "KIND_CPU"
    assert config == {
        "name": "digits",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 128,
        "input": [{"name": "images", "data_type": "TYPE_UINT8", "dims": ["28", "28"]}],
        "output": [
            {"name": "logits", "data_type": "TYPE_FP32", "dims": ["10"]},
            {"name": "probabilities", "data_type": "TYPE_FP32", "dims": ["10"]},
        ],
        "dynamic_batching": {},
    }
    assert told["index"]["models"] == [{"name": "digits", "version": model.version, "state": "READY", "reason": "stable"}]


async def test_tritonclient_infers(
    server: Server, model: Model, images: Images, expected: NDArray[np.float32], tmp_path: Path
) -> None:
    told = await story("infer", server, images[:5], tmp_path)
    for name, outputs in {
        "all": ["logits", "probabilities"],
        "chosen": ["probabilities"],
        "turned": ["probabilities", "logits"],
        "unhurried": ["logits", "probabilities"],
        "compressed": ["logits", "probabilities"],
        "own parameters": ["logits", "probabilities"],
    }.items():
        answer = told[name]
        assert (answer["model"], answer["version"]) == ("digits", model.version)
        assert list(answer["outputs"]) == outputs
        assert set(answer["datatypes"]) == {"FP32"}
        assert_near(answer["outputs"]["probabilities"], expected[:5, 10:])
        if "logits" in outputs:
            assert_near(answer["outputs"]["logits"], expected[:5, :10])
    assert told["all"]["id"] == "a b"


def assert_answered(answers: list[Told], expected: NDArray[np.float32]) -> None:
    """Each answer is that of the image whose number its id is."""
    for answer in answers:
        assert_near(answer["outputs"]["probabilities"], expected[int(answer["id"]), 10:])


async def test_tritonclient_infers_with_callbacks(
    server: Server, images: Images, expected: NDArray[np.float32], tmp_path: Path
) -> None:
    told = await story("async_infer", server, images[:200], tmp_path)
    assert {answer["id"] for answer in told} == {str(number) for number in range(200)}
    assert_answered(told, expected)


async def test_tritonclient_streams_and_a_bad_request_spoils_no_other(
    server: Server, images: Images, expected: NDArray[np.float32], tmp_path: Path
) -> None:
    told = await story("stream", server, images[:200], tmp_path)
    assert [answer["id"] for answer in told["answers"]] == [str(number) for number in range(200)]
    assert_answered(told["answers"], expected)
    reason = "images has shape [1, 27, 28], expected images, UINT8 [n, 28, 28], n at least 1"
    assert told["errors"] == [[None, reason]] * 4
    assert told["final"] == [True] * 200
    assert told["left"] == 0
    assert value(server.metrics.registry, "digits_requests_total", method="ModelStreamInfer", code="OK") == 200
    counted = {"method": "ModelStreamInfer", "code": "INVALID_ARGUMENT"}
    assert value(server.metrics.registry, "digits_requests_total", **counted) == 4


async def test_tritonclient_calls_from_asyncio(
    server: Server, images: Images, expected: NDArray[np.float32], tmp_path: Path
) -> None:
    told = await story("aio", server, images[:200], tmp_path)
    assert told["ready"]
    assert [answer["id"] for answer in told["answers"]] == [str(number) for number in range(200)]
    assert_answered(told["answers"], expected)
    streamed = told["streamed"]
    assert [number for number, answer in enumerate(streamed) if isinstance(answer, str)] == [49, 99, 149, 199]
    good = [answer for answer in streamed if not isinstance(answer, str)]
    assert [answer["id"] for answer in good] == [str(number) for number in range(200) if number % 50 != 49]
    assert_answered(good, expected)
    assert told["refused"][0] == "StatusCode.NOT_FOUND"


async def test_tritonclient_is_told_what_was_wrong(server: Server, images: Images, tmp_path: Path) -> None:
    told = await story("errors", server, images[:2], tmp_path)
    invalid, unknown, denied = "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND", "StatusCode.PERMISSION_DENIED"
    expected = {
        "model": (unknown, "letters"),
        "version": (unknown, "'1'"),
        "no version": (unknown, "'newest'"),
        "long name": (unknown, "xxx"),
        "shape": (invalid, "images has shape [2, 27, 28], expected images, UINT8 [n, 28, 28], n at least 1"),
        "no images": (invalid, "images has shape [0, 28, 28], expected images, UINT8 [n, 28, 28], n at least 1"),
        "datatype": (invalid, "images is of datatype 'FP32', expected images, UINT8 [n, 28, 28]"),
        "name": (invalid, "there is no input 'image', expected images, UINT8 [n, 28, 28]"),
        "inputs": (invalid, "there are 2 inputs, expected one: images, UINT8 [n, 28, 28]"),
        "output": (invalid, "there is no output 'digits', expected any of logits, probabilities"),
        "classes": (invalid, "as a classification"),
        "timeout": (invalid, "parameter timeout is not a number of microseconds"),
        "metadata": (unknown, "letters"),
        "metadata of a version": (unknown, "'1'"),
        "config": (unknown, "letters"),
        "statistics": (unknown, "letters"),
        "load": (denied, "--model-control"),
        "unload": (denied, "--model-control"),
        "trace": ("StatusCode.UNIMPLEMENTED", ""),
        "good": ("OK", ""),
    }
    assert set(told) == set(expected)
    for name, (status, part) in expected.items():
        assert told[name][0] == status, name
        assert part in told[name][1], name


async def test_tritonclient_s_two_timeouts_both_end_a_call(
    start_server: StartServer, gated: GatedModel, images: Images, tmp_path: Path
) -> None:
    server = await start_server(gated, instances=1)
    told = await story("late", server, images[:1], tmp_path)
    gated.open()
    assert {name: status for name, (status, _) in told.items()} == {
        "client_timeout": "StatusCode.DEADLINE_EXCEEDED",
        "timeout": "StatusCode.DEADLINE_EXCEEDED",
    }


async def test_tritonclient_gets_statistics_that_add_up(
    server: Server, model: Model, images: Images, tmp_path: Path
) -> None:
    told = await story("statistics", server, images[:20], tmp_path)
    assert told["after"] == told["named"]
    (before,), (after,) = told["before"]["model_stats"], told["after"]["model_stats"]
    assert (before["name"], before["version"]) == ("digits", model.version)
    assert before["inference_stats"]["success"] == {}
    assert "last_inference" not in before
    assert int(after["inference_count"]) == 40
    assert int(after["execution_count"]) == 21
    assert int(after["last_inference"]) > 1_700_000_000_000
    stats = {name: {part: int(number) for part, number in told.items()} for name, told in after["inference_stats"].items()}
    assert stats.pop("fail") == {}
    # perf_analyzer aborts unless the counts of the three computes are the same.
    assert {name: part["count"] for name, part in stats.items()} == dict.fromkeys(
        ("success", "queue", "compute_input", "compute_infer", "compute_output"), 21
    )
    assert stats["success"]["ns"] == stats["queue"]["ns"] + stats["compute_infer"]["ns"]
    assert min(stats["queue"]["ns"], stats["compute_infer"]["ns"]) > 0


async def test_tritonclient_unloads_and_loads_where_that_is_allowed(
    start_server: StartServer, model: Model, images: Images, tmp_path: Path
) -> None:
    server = await start_server(model_control=True)
    told = await story("control", server, images[:1], tmp_path)
    entry = {"name": "digits", "version": model.version}
    serving = {
        "ready": True,
        "infer": ["OK", ""],
        "metadata": ["OK", ""],
        "index": {**entry, "state": "READY", "reason": "stable"},
    }
    assert told["before"] == told["loaded"] == serving
    for done in ("load what is loaded", "unload", "unload again", "load"):
        assert told[done] == ["OK", ""], done
    assert told["unloaded"]["ready"] is False
    assert told["unloaded"]["infer"] == ["StatusCode.UNAVAILABLE", "model 'digits' is not loaded"]
    assert told["unloaded"]["metadata"] == ["StatusCode.UNAVAILABLE", "model 'digits' is not loaded"]
    assert told["unloaded"]["index"]["state"] == "UNAVAILABLE"
    for unknown in ("load unknown", "unload unknown"):
        assert told[unknown][0] == "StatusCode.NOT_FOUND"
    for overriding in ("load with config", "load with file"):
        assert told[overriding][0] == "StatusCode.INVALID_ARGUMENT"
        assert "a model is loaded as it lies in the repository" in told[overriding][1]


async def test_crops_are_read_and_decided_on_as_the_native_api_does(
    server: Server, stub: GRPCInferenceServiceStub, model: Model, images: Images
) -> None:
    random = np.random.default_rng(1)
    files = [photograph(image, random) for image in images[:5]] + [b"no picture"]
    request = pb.ModelInferRequest(model_name="digits")
    request.inputs.add(name="crops", datatype="BYTES", shape=[6]).contents.bytes_contents.extend(files)
    refusal = await refused(infer(stub, request))
    assert (refusal.code(), refusal.details()) == (
        CODE.INVALID_ARGUMENT,
        "crop 5 can't be read: neither a PNG nor a JPEG, but 10 bytes of something else",
    )
    for name in ("probabilities", "decisions"):
        request.outputs.add(name=name)
    request.parameters["target_error_rate"].double_param = 0.01
    answer = await infer(stub, request)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        native = await DigitServiceStub(channel).RecognizeBatch(
            RecognizeBatchRequest(crops=files, target_error_rate=0.01), timeout=TIMEOUT
        )
    assert list(answer.outputs[0].contents.fp32_contents) == pytest.approx(list(native.probabilities), abs=1e-6)
    assert list(answer.outputs[1].contents.uint_contents) == list(native.decisions)
    assert native.decisions[5] == Decision.REJECT_INVALID_IMAGE
    stated = {name: value.double_param for name, value in answer.parameters.items()}
    assert stated == {"threshold": native.threshold, "target_error_rate": 0.01, "recognition_id": 0.0, "captured": 0.0}
    held = RecognitionIds().read(answer.parameters["recognition_id"].string_param)
    assert list(held.digits) == list(native.digits)
    assert list(held.decisions) == list(native.decisions)
    request.parameters["target_error_rate"].string_param = "0.01"
    refusal = await refused(infer(stub, request))
    assert "target_error_rate is not a number" in (refusal.details() or "")
