import asyncio
import gc
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from numpy.typing import NDArray

from serving.api import digits
from serving.client import Decision, DigitClient, Recognition, Refusal
from serving.errors import Refused, RequestError, request_errors
from serving.imaging.decode import frame_crop
from serving.inference.model import Model
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from serving.repository.versions import ModelVersion
from serving.samples.photograph import encode, photograph
from serving.telemetry.metrics import Metrics
from serving.transport import grpc_front
from tests.support.calls import TIMEOUT, refused
from tests.support.metrics import until, value
from tests.support.model_files import publish_breakable, publish_unsound
from tests.support.models import GatedModel
from tests.support.servers import StartServer

Images = NDArray[np.uint8]

CODE = grpc.StatusCode


async def recognize(stub: DigitServiceStub, image: bytes, timeout: float = TIMEOUT) -> pb.RecognizeResponse:
    answer: pb.RecognizeResponse = await stub.Recognize(pb.RecognizeRequest(image=image), timeout=timeout)
    return answer


async def recognize_batch(stub: DigitServiceStub, images: bytes) -> pb.RecognizeBatchResponse:
    request = pb.RecognizeBatchRequest(images=images)
    answer: pb.RecognizeBatchResponse = await stub.RecognizeBatch(request, timeout=TIMEOUT)
    return answer


async def test_one_image_is_answered_as_the_model_reads_it(stub: DigitServiceStub, model: Model, images: Images) -> None:
    expected = model.predict(images[:1])[0]
    answer = await recognize(stub, images[0].tobytes())
    assert answer.digit == expected.argmax()
    assert answer.confidence == pytest.approx(expected.max(), abs=1e-6)
    assert list(answer.probabilities) == pytest.approx(expected.tolist(), abs=1e-6)
    assert answer.model_version == model.version


async def test_a_batch_is_answered_in_order(stub: DigitServiceStub, server: Server, model: Model, images: Images) -> None:
    expected = model.predict(images)
    answer = await recognize_batch(stub, images.tobytes())
    assert list(answer.digits) == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(answer.confidences, expected.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(np.array(answer.probabilities).reshape(-1, 10), expected, atol=1e-5)
    assert answer.model_version == model.version


@pytest.mark.parametrize("size", [0, 1, 783, 785, 2 * 784])
async def test_an_image_of_another_size_is_refused_and_the_server_lives(
    stub: DigitServiceStub, images: Images, size: int
) -> None:
    error = await refused(recognize(stub, bytes(size)))
    assert error.code() is CODE.INVALID_ARGUMENT
    assert error.details() == f"image is {size} bytes, expected 784: 28 rows of 28 pixels"
    assert len((await recognize(stub, images[0].tobytes())).probabilities) == 10


@pytest.mark.parametrize("size", [0, 783, 10 * 784 + 1])
async def test_a_batch_of_no_whole_number_of_images_is_refused(stub: DigitServiceStub, size: int) -> None:
    error = await refused(recognize_batch(stub, bytes(size)))
    assert error.code() is CODE.INVALID_ARGUMENT
    assert f"images is {size} bytes" in (error.details() or "")


async def test_a_message_with_too_many_images_is_refused_and_the_server_lives(
    start_server: StartServer, images: Images
) -> None:
    server = await start_server(max_images_per_request=100)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        error = await refused(recognize_batch(stub, bytes(101 * 784)))
        assert error.code() is CODE.INVALID_ARGUMENT
        assert error.details() == "images holds 101 images, this server takes 100 a call"
        error = await refused(recognize_batch(stub, bytes(5 << 20)))
        assert error.code() is CODE.RESOURCE_EXHAUSTED
        assert len((await recognize_batch(stub, images[:100].tobytes())).digits) == 100


@pytest.mark.parametrize("why", ["refused", "no message", "model", "model, in a stream"])
async def test_frames_of_calls_that_failed_and_wait_for_the_collector_hold_no_images(
    start_server: StartServer, tmp_path: Path, why: str
) -> None:
    publish_unsound(tmp_path, 1)
    server = await start_server(None, models=tmp_path)
    directory, white = str(Path(grpc_front.__file__).parents[1]), b"\xff" * 784
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = DigitServiceStub(channel)
            for _ in range(5):
                if why == "refused":
                    await refused(recognize_batch(stub, white + b"1"))
                elif why == "no message":
                    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                        f"/{digits.NAME}/RecognizeBatch"
                    )
                    await refused(call(white, timeout=TIMEOUT))
                elif why == "model":
                    await refused(recognize_batch(stub, white))
                else:
                    requests = [pb.RecognizeStreamRequest(id=1, request=pb.RecognizeRequest(image=white))]
                    answers = [answer async for answer in stub.RecognizeStream(iter(requests), timeout=TIMEOUT)]
                    assert [answer.error.code for answer in answers] == [CODE.INTERNAL.value[0]]
        gc.collect()
        frames = [one for one in gc.garbage if isinstance(one, FrameType) and one.f_code.co_filename.startswith(directory)]
        parts = [part for one in frames for part in gc.get_referents(one)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not [part for part in parts if isinstance(part, (bytes, memoryview)) and len(part) >= 784]


async def test_bytes_that_are_no_message_are_refused_and_the_server_lives(server: Server, images: Images) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{digits.NAME}/Recognize")
        error = await refused(call(b"\xff" * 50, timeout=TIMEOUT))
        assert error.code() is CODE.INVALID_ARGUMENT
        assert error.details() == "the request is not a digits.v1.RecognizeRequest message"
        assert await recognize(DigitServiceStub(channel), images[0].tobytes())


def test_every_reason_for_no_answer_has_a_status_code() -> None:
    reasons = {*RequestError.__subclasses__(), *Refused.__subclasses__()} - {Refused}
    assert request_errors() == reasons
    assert {error.code.name for error in reasons} <= {code.name for code in grpc.StatusCode}
    named = {reason.reason for reason in reasons}
    assert len(named) == len(reasons)
    described = next(iter(Metrics().rejected_requests.describe())).documentation.rstrip(".").split(": ")[1].split(", ")
    assert set(described) == named | {"cancelled"}, "the metric's help names them all"


async def test_a_full_queue_is_told_with_a_time_to_come_back(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, max_queue_size=10, max_images_per_request=10, instances=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        running = asyncio.ensure_future(recognize(stub, images[0].tobytes()))
        await gated.run_starts()
        waiting = asyncio.ensure_future(recognize_batch(stub, images[:10].tobytes()))
        await until(server.metrics.registry, "digits_queue_length_images", 10)
        error = await refused(recognize(stub, images[0].tobytes()))
        gated.open()
        assert error.code() is CODE.RESOURCE_EXHAUSTED
        assert int(str(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])) >= 1
        await asyncio.gather(running, waiting)
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="queue_full") == 1


async def test_an_expired_deadline_is_counted_and_what_waited_is_never_run(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        running = asyncio.ensure_future(recognize(stub, images[0].tobytes()))
        await gated.run_starts()
        error = await refused(recognize(stub, images[1].tobytes(), timeout=0.2))
        assert error.code() is CODE.DEADLINE_EXCEEDED
        gated.open()
        await running
        await recognize(stub, images[2].tobytes())
    assert [batch[0].tobytes() for batch in gated.batches] == [images[0].tobytes(), images[2].tobytes()]
    counted = {"method": "Recognize", "code": "DEADLINE_EXCEEDED"}
    assert value(server.metrics.registry, "digits_requests_total", **counted) == 1
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="deadline") == 1


async def test_a_caller_that_gives_up_is_counted_and_what_waited_is_never_run(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    registry = server.metrics.registry
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        running = asyncio.ensure_future(recognize(stub, images[0].tobytes()))
        await gated.run_starts()
        leaving = stub.Recognize(pb.RecognizeRequest(image=images[1].tobytes()), timeout=TIMEOUT)
        staying = asyncio.ensure_future(recognize(stub, images[2].tobytes()))
        await until(registry, "digits_queue_length_images", 2)
        leaving.cancel()
        await until(registry, "digits_queue_length_images", 1)
        gated.open()
        await asyncio.gather(running, staying)
    assert [batch[0].tobytes() for batch in gated.batches] == [images[0].tobytes(), images[2].tobytes()]
    assert value(registry, "digits_requests_total", method="Recognize", code="CANCELLED") == 1


async def test_what_is_rare_is_counted_from_0_so_that_its_first_time_is_an_increase(server: Server) -> None:
    samples = [sample for metric in server.metrics.registry.collect() for sample in metric.samples]
    reasons = {sample.labels["reason"] for sample in samples if sample.name == "digits_rejected_requests_total"}
    assert reasons == {error.reason for error in request_errors()} | {"cancelled"}
    truths = [sample.labels for sample in samples if sample.name == "digits_truth_total"]
    assert {(labels["unit"], labels["source"], labels["decision"], labels["outcome"]) for labels in truths} == {
        (unit, "audit", "accept", outcome) for unit in ("digit", "field") for outcome in ("right", "wrong")
    }


async def test_sixty_four_callers_share_batches_without_any_delay_set(
    stub: DigitServiceStub, server: Server, model: Model, images: Images
) -> None:
    expected = model.predict(images).argmax(axis=1)

    async def call_in_turn(first: int) -> list[int]:
        return [(await recognize(stub, images[n].tobytes())).digit for n in range(first, len(images), 64)]

    for first, read in enumerate(await asyncio.gather(*(call_in_turn(first) for first in range(64)))):
        assert read == expected[first::64].tolist()
    runs = value(server.metrics.registry, "digits_batch_size_images_count")
    assert value(server.metrics.registry, "digits_batch_size_images_sum") == len(images)
    assert len(images) / runs > 2  # of 64; on a busy machine they come in few at a time
    assert value(server.metrics.registry, "digits_requests_total", method="Recognize", code="OK") == len(images)


async def test_a_run_that_fails_in_onnx_runtime_ends_its_call_with_a_fixed_text_and_the_server_lives(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish_breakable(tmp_path, 1)
    server = await start_server(None, models=tmp_path)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        assert len((await recognize_batch(stub, images[:5].tobytes())).digits) == 5
        error = await refused(recognize(stub, b"\xff" * 784))
        assert error.code() is CODE.INTERNAL
        assert error.details() == "the model failed on a run with images of this request"
        assert len((await recognize_batch(stub, images[:5].tobytes())).digits) == 5
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="model_error") == 1


async def test_an_image_that_the_model_gives_no_number_for_fails_alone(
    start_server: StartServer, model: Model, images: Images, tmp_path: Path
) -> None:
    publish_unsound(tmp_path, 1)
    server = await start_server(None, models=tmp_path, max_queue_delay_ms=50, instances=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        good, error = await asyncio.gather(
            recognize_batch(stub, images[:5].tobytes()), refused(recognize(stub, b"\xff" * 784))
        )
    assert error.code() is CODE.INTERNAL
    assert error.details() == "the model returned NaN or infinity for an image in this request"
    assert list(good.digits) == model.predict(images[:5]).argmax(axis=1).tolist()
    assert value(server.metrics.registry, "digits_batch_size_images_count") == 1, "they should have shared a run"


async def test_metrics_over_http_count_what_was_answered(
    stub: DigitServiceStub, server: Server, model: Model, images: Images
) -> None:
    await recognize_batch(stub, images.tobytes())
    await refused(recognize(stub, b""))

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=TIMEOUT) as page:
            return str(page.read(), "utf-8")

    page = await asyncio.to_thread(scrape)
    counts = np.bincount(model.predict(images).argmax(axis=1), minlength=10)
    for digit, count in enumerate(counts):
        assert f'digits_predictions_total{{digit="{digit}",model="digits",version="{model.version}"}} {count:.1f}' in page
    assert 'digits_requests_total{code="INVALID_ARGUMENT",method="Recognize"} 1.0' in page
    assert 'digits_rejected_requests_total{reason="invalid"} 1.0' in page
    assert f'digits_confidence_count{{model="digits",version="{model.version}"}} {len(images):.1f}' in page
    assert "digits_in_flight_requests 0.0" in page
    assert f'model="digits",recipe="{model.metadata.recipe}",test_accuracy="{model.metadata.test_accuracy:.4f}"' in page


async def test_health_and_reflection_answer(server: Server) -> None:
    def reflect() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            file = database.FindFileContainingSymbol(digits.NAME)
            return list(database.get_services()), [method.name for method in file.service[0].method]

    services, methods = await asyncio.to_thread(reflect)
    assert digits.NAME in services
    assert methods == ["Recognize", "RecognizeBatch", "ReadField", "ReportTruth", "RecognizeStream"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", digits.NAME):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def files(images: Images) -> list[bytes]:
    random = np.random.default_rng(1)
    return [photograph(image, random) for image in images[:20]]


async def test_a_crop_is_read_as_the_image_that_it_is_framed_to(
    stub: DigitServiceStub, model: Model, files: list[bytes]
) -> None:
    expected = model.predict(frame_crop(files[0])[None])[0]
    request = pb.RecognizeRequest(crop=files[0])
    answer = await stub.Recognize(request, timeout=TIMEOUT)
    assert list(answer.probabilities) == pytest.approx(expected.tolist(), abs=1e-5)

    async def requests() -> AsyncIterator[pb.RecognizeStreamRequest]:
        yield pb.RecognizeStreamRequest(id=1, request=request)
        yield pb.RecognizeStreamRequest(id=2, request=pb.RecognizeRequest(crop=b"no picture"))

    answers = {answer.id: answer async for answer in stub.RecognizeStream(requests(), timeout=TIMEOUT)}
    assert list(answers[1].answer.probabilities) == pytest.approx(expected.tolist(), abs=1e-5)
    assert (answers[2].error.code, answers[2].error.message) == (
        CODE.INVALID_ARGUMENT.value[0],
        "crop: neither a PNG nor a JPEG, but 10 bytes of something else",
    )


async def test_a_batch_of_crops_is_answered_but_for_those_that_cannot_be_read(
    stub: DigitServiceStub, model: Model, server: Server, files: list[bytes]
) -> None:
    expected = model.predict(np.stack([frame_crop(file) for file in files])).argmax(axis=1).tolist()
    files[3], files[7] = files[3][:100], encode(np.full((90, 60), 200, np.uint8), "PNG")
    answer = await stub.RecognizeBatch(pb.RecognizeBatchRequest(crops=files), timeout=TIMEOUT)
    assert len(answer.digits) == len(answer.decisions) == 20
    invalid = [place for place, one in enumerate(answer.decisions) if one == pb.DECISION_REJECT_INVALID_IMAGE]
    assert invalid == [3, 7], "a broken file, and paper"
    assert [digit for place, digit in enumerate(answer.digits) if place not in invalid] == [
        digit for place, digit in enumerate(expected) if place not in invalid
    ]
    assert list(answer.troubles) == [3]
    assert "the file is broken" in answer.troubles[3]
    assert value(server.metrics.registry, "digits_decisions_total", decision="invalid_image") == 2
    assert value(server.metrics.registry, "digits_decisions_total") == 20


async def test_images_and_crops_at_once_and_too_many_crops_are_refused(
    start_server: StartServer, images: Images, files: list[bytes]
) -> None:
    server = await start_server(max_images_per_request=10)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        both = await refused(stub.Recognize(pb.RecognizeRequest(image=images[0].tobytes(), crop=files[0]), timeout=TIMEOUT))
        assert (both.code(), both.details()) == (
            CODE.INVALID_ARGUMENT,
            "there are images and crops: expected one of the two",
        )
        many = await refused(stub.RecognizeBatch(pb.RecognizeBatchRequest(crops=[b"x"] * 20), timeout=TIMEOUT))
        assert (many.code(), many.details()) == (
            CODE.INVALID_ARGUMENT,
            "crops holds 20 images, this server takes 10 a call",
        )


async def test_an_answer_is_accepted_from_the_threshold_that_is_certified_for_what_was_asked(
    start_server: StartServer, model: Model, images: Images
) -> None:
    server = await start_server(target_error_rate=0.002)
    confidences = model.predict(images).max(axis=1)
    assert {one.target_error_rate for one in model.metadata.thresholds} == {0.01, 0.005, 0.002}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        for asked, certified in ((0, 0.002), (0.002, 0.002), (0.004, 0.002), (0.005, 0.005), (0.3, 0.01)):
            [least] = [one.confidence for one in model.metadata.thresholds if one.target_error_rate == certified]
            request = pb.RecognizeBatchRequest(images=images.tobytes(), target_error_rate=asked)
            answer = await stub.RecognizeBatch(request, timeout=TIMEOUT)
            assert (answer.target_error_rate, answer.threshold) == (certified, least)
            accepted = np.array(answer.decisions) == pb.DECISION_ACCEPT
            np.testing.assert_array_equal(accepted, np.array(answer.confidences) >= least)
            assert (np.array(answer.decisions)[~accepted] == pb.DECISION_REJECT_LOW_CONFIDENCE).all()
            unsure = int(confidences.argmin())
            one = pb.RecognizeRequest(image=images[unsure].tobytes(), target_error_rate=asked)
            single = await stub.Recognize(one, timeout=TIMEOUT)
            assert (single.target_error_rate, single.threshold) == (certified, least)
            assert single.decision == answer.decisions[unsure]
        request = pb.RecognizeBatchRequest(images=images.tobytes(), target_error_rate=0.0001)
        answer = await stub.RecognizeBatch(request, timeout=TIMEOUT)
        assert not answer.HasField("target_error_rate")
        assert not answer.HasField("threshold")
        assert set(answer.decisions) == {pb.DECISION_REJECT_NOT_CERTIFIED}
        for wrong in (-0.1, 1.0, float("nan")):
            request = pb.RecognizeBatchRequest(images=images.tobytes(), target_error_rate=wrong)
            error = await refused(stub.RecognizeBatch(request, timeout=TIMEOUT))
            assert error.code() is CODE.INVALID_ARGUMENT
            assert f"target_error_rate is {wrong}, expected a share below 1" in (error.details() or "")


async def test_an_image_of_nothing_but_paper_is_rejected_as_no_digit(stub: DigitServiceStub, images: Images) -> None:
    assert (await recognize(stub, bytes(784))).decision == pb.DECISION_REJECT_INVALID_IMAGE
    answer = await recognize_batch(stub, bytes(784) + images[0].tobytes())
    assert [one == pb.DECISION_REJECT_INVALID_IMAGE for one in answer.decisions] == [True, False]


async def test_the_client_sends_arrays_and_crops_and_says_what_was_decided(
    server: Server, images: Images, files: list[bytes]
) -> None:
    def call() -> None:
        with DigitClient(f"127.0.0.1:{server.grpc_port}", timeout_seconds=TIMEOUT) as client:
            one, many = client.recognize(files[0], target_error_rate=0.01), client.recognize_batch(files)
            assert (one.digit, one.target_error_rate, many[0].target_error_rate) == (many[0].digit, 0.01, 0.005)
            assert one.decision is Decision.ACCEPT
            assert one.threshold
            assert many[0].threshold
            assert one.threshold < many[0].threshold
            [broken] = client.recognize_batch([b"no picture"], target_error_rate=0.0001)
            assert (broken.decision, broken.threshold) == (Decision.REJECT_INVALID_IMAGE, None)
            assert "neither a PNG nor a JPEG" in broken.trouble
            assert len(client.recognize_batch(images[:3])) == 3
            streamed = dict(client.recognize_stream([files[0], images[0], b"no picture"], target_error_rate=0.01))
            assert isinstance(streamed[0], Recognition)
            assert (streamed[0].digit, streamed[0].threshold) == (one.digit, one.threshold)
            assert isinstance(streamed[1], Recognition)
            assert isinstance(streamed[2], Refusal)

    await asyncio.to_thread(call)


async def test_crops_on_their_way_are_answered_when_the_server_stops(start_server: StartServer, files: list[bytes]) -> None:
    server = await start_server()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        request = pb.RecognizeBatchRequest(crops=files * 15)
        answering = DigitServiceStub(channel).RecognizeBatch(request, timeout=TIMEOUT)
        await until(server.metrics.registry, "digits_in_flight_requests", 1)
        stopping = asyncio.create_task(server.stop(drain_seconds=0, grace_seconds=TIMEOUT))
        assert len((await answering).digits) == 300
        await stopping


@pytest.fixture(scope="session")
def certified(bundled: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model that says of fields of five digits what it is certified for."""
    models = tmp_path_factory.mktemp("certified")
    (models / "digits" / "1").mkdir(parents=True)
    model = onnx.load(bundled.path)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    thresholds = {"5": {"0.05": {"threshold": 0.3, "coverage": 1.0}, "0.01": {"threshold": 0.97, "coverage": 0.9}}}
    onnx.helper.set_model_props(model, entries | {"field_thresholds": json.dumps(thresholds)})
    onnx.save(model, models / "digits" / "1" / "model.onnx")
    return models


async def read_field(server: Server, **request: Any) -> pb.ReadFieldResponse:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        answer: pb.ReadFieldResponse = await DigitServiceStub(channel).ReadField(
            pb.ReadFieldRequest(**request), timeout=TIMEOUT
        )
        return answer


async def test_a_field_is_answered_as_one(
    start_server: StartServer, certified: Path, model: Model, images: Images, files: list[bytes]
) -> None:
    server = await start_server(None, models=certified)
    expected = model.predict(images[:5])
    answer = await read_field(server, images=images[:5].tobytes())
    assert answer.value == "".join(map(str, expected.argmax(axis=1)))
    assert answer.confidence == pytest.approx(expected.max(axis=1).prod(), abs=1e-5)
    assert (answer.threshold, answer.target_error_rate) == (0.97, 0.01)
    assert answer.decision == pb.DECISION_ACCEPT
    confidences = model.predict(images).max(axis=1)
    unsure = images[np.argsort(confidences)[:5]]
    assert np.sort(confidences)[:5].prod() < 0.97
    assert (await read_field(server, images=unsure.tobytes())).decision == pb.DECISION_REJECT_LOW_CONFIDENCE
    order = np.argsort(-expected, axis=1, kind="stable")[:, :3]
    assert [list(one.digits) for one in answer.digits] == order.tolist()
    likely = np.take_along_axis(expected, order, axis=1)
    np.testing.assert_allclose([list(one.probabilities) for one in answer.digits], likely, atol=1e-5)
    assert value(server.metrics.registry, "digits_fields_total") == 2
    assert value(server.metrics.registry, "digits_fields_total", decision="low_confidence") == 1
    assert value(server.metrics.registry, "digits_decisions_total") == 0, "the field is what is decided on"

    lenient = await read_field(server, images=images[:5].tobytes(), target_error_rate=0.2)
    assert (lenient.threshold, lenient.target_error_rate) == (0.3, 0.05)
    other = await read_field(server, images=images[:4].tobytes())
    assert (other.decision, other.HasField("threshold")) == (pb.DECISION_REJECT_NOT_CERTIFIED, False), "of fields of four"
    alone = await read_field(server, images=images[:1].tobytes())
    assert alone.threshold == model.metadata.thresholds[0].confidence, "a field of one digit is a digit"
    crops = await read_field(server, crops=files[:5])
    assert crops.value == answer.value
    broken = await read_field(server, crops=[*files[:4], b"no picture"])
    assert broken.decision == pb.DECISION_REJECT_INVALID_IMAGE
    assert list(broken.troubles) == [4]


async def test_a_field_in_a_lexicon_is_the_most_probable_code(
    start_server: StartServer, certified: Path, model: Model, images: Images, tmp_path: Path
) -> None:
    read = "".join(map(str, model.predict(images[:5]).argmax(axis=1)))
    (tmp_path / "with.txt").write_text(f"00000\n{read}\n")
    (tmp_path / "without.txt").write_text("\n".join(f"{code:05}" for code in range(100_000) if f"{code:05}" != read))
    server = await start_server(None, models=certified, lexicons=tmp_path)
    pixels = images[:5].tobytes()
    there = await read_field(server, images=pixels, lexicon="with")
    assert (there.value, there.decision) == (read, pb.DECISION_ACCEPT)
    assert there.confidence > 0.99
    absent = await read_field(server, images=pixels, lexicon="without")
    assert (absent.value, absent.decision) == (read, pb.DECISION_REJECT_NOT_IN_LEXICON)
    four = await read_field(server, images=images[:4].tobytes(), lexicon="with")
    assert (four.value, four.decision) == (read[:4], pb.DECISION_REJECT_NOT_IN_LEXICON)
    error = await refused(read_field(server, images=pixels, lexicon="wihtout"))
    assert (error.code(), error.details()) == (
        CODE.INVALID_ARGUMENT,
        "there is no lexicon 'wihtout', this server has: with, without",
    )

    def call() -> None:
        with DigitClient(f"127.0.0.1:{server.grpc_port}", timeout_seconds=TIMEOUT) as client:
            field = client.read_field(images[:5], lexicon="with")
            assert (field.value, field.decision, field.candidates.shape) == (read, Decision.ACCEPT, (5, 3))
            assert field.probabilities.shape == (5, 3)
            assert client.read_field(images[:5]).threshold == 0.97

    await asyncio.to_thread(call)


@pytest.mark.parametrize("length", [0, 19])
async def test_a_field_of_no_or_too_many_digits_is_refused(server: Server, length: int) -> None:
    error = await refused(read_field(server, images=bytes(784 * length)))
    assert error.code() is CODE.INVALID_ARGUMENT
