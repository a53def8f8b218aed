import asyncio
import logging
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.api.infer_by_run import InferParser
from serving.call import Call
from serving.contract import IMAGE_BYTES
from serving.errors import Internal, QueueFull, RequestError, Stopping
from serving.feedback.capture import Capture
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as inference
from serving.process.server import Server
from serving.recognition.call_group import CallGroup
from tests.support.calls import TIMEOUT
from tests.support.credentials import TOKEN, bearer, entry
from tests.support.event_loop import turns
from tests.support.infer_calls import crop_request, image_request
from tests.support.metrics import until, value
from tests.support.models import GatedModel
from tests.support.servers import StartServer
from tests.support.ways import Outcome, Sent, answer_by_run, enter, start_lone

Images = NDArray[np.uint8]
SEVEN = pb.RecognizeRequest(image=b"\x80" * IMAGE_BYTES)


def count(server: Server, name: str, **labels: str) -> float:
    return value(server.metrics.registry, f"digits_{name}", **labels)


def assert_ended(server: Server, code: str, reason: str) -> None:
    """Asserts that one call ended with this code for this reason, and that none is under way."""
    assert count(server, "requests_total", method="Recognize", code=code) == 1
    assert count(server, "rejected_requests_total", reason=reason) == 1
    assert count(server, "rejected_requests_total") == 1
    assert count(server, "request_seconds_count") == count(server, "requests_total")
    assert count(server, "in_flight_requests") == 0
    assert count(server, "queue_length_images") == 0


@pytest.fixture
async def busy(start_server: StartServer, gated: GatedModel) -> Server:
    """A server in the middle of a run, which goes on when the gate opens."""
    server = await start_server(gated, instances=1)
    enter(server, Sent(SEVEN), Outcome())
    await gated.run_starts()
    return server


async def test_a_lone_image_is_answered_at_once_and_others_of_its_turn_wait(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_lone(start_server, monkeypatch)
    outcomes = [Outcome() for _ in range(4)]
    for outcome in outcomes:
        enter(server, Sent(SEVEN), outcome)
    assert [outcome.ended.is_set() for outcome in outcomes] == [True, False, False, False]
    runs = count(server, "batch_size_images_count")
    for outcome in outcomes:
        await asyncio.wait_for(outcome.ended.wait(), TIMEOUT)
    assert count(server, "batch_size_images_count") == runs + 1
    again = Outcome()
    enter(server, Sent(SEVEN), again)
    assert not again.ended.is_set(), "there were several callers just now"
    await asyncio.wait_for(again.ended.wait(), TIMEOUT)


@pytest.mark.parametrize(
    ("seconds", "code", "reason"), [(TIMEOUT, "CANCELLED", "cancelled"), (0.001, "DEADLINE_EXCEEDED", "deadline")]
)
async def test_a_call_abandoned_in_the_queue_is_never_run(
    busy: Server, gated: GatedModel, seconds: float, code: str, reason: str
) -> None:
    outcome = Outcome()
    pending = enter(busy, Sent(SEVEN, seconds), outcome)
    assert pending
    assert count(busy, "queue_length_images") == 1
    pending.abandon()
    assert count(busy, "queue_length_images") == 0
    gated.open()
    await until(busy.metrics.registry, "digits_requests_total", 1, code="OK")
    assert not outcome.ended.is_set()
    assert [len(batch) for batch in gated.batches] == [1]
    assert_ended(busy, code, reason)
    assert count(busy, "model_request_seconds_count", outcome="failed") == 1


async def test_a_call_abandoned_during_its_run_gets_no_answer(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1, max_queue_delay_ms=100)
    left, stayed = Outcome(), Outcome()
    pending = enter(server, Sent(SEVEN), left)
    enter(server, Sent(pb.RecognizeRequest(image=images[0].tobytes())), stayed)
    await gated.run_starts()
    assert pending
    pending.abandon()
    gated.open()
    await asyncio.wait_for(stayed.ended.wait(), TIMEOUT)
    assert pb.RecognizeResponse.FromString(stayed.encoded).confidence > 0.9
    assert not left.ended.is_set()
    assert_ended(server, "CANCELLED", "cancelled")
    assert count(server, "model_request_seconds_count", outcome="answered") == 1


async def test_a_call_abandoned_while_its_image_is_stored_gets_no_answer(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storing, stored = asyncio.Event(), asyncio.Event()

    async def keep(*_: object) -> bool:
        storing.set()
        await stored.wait()
        return True

    monkeypatch.setattr(Capture, "keep", keep)
    server = await start_server(capture=f"sqlite:///{tmp_path}/captured.db")
    outcome = Outcome()
    pending = enter(server, Sent(pb.RecognizeRequest(image=SEVEN.image, target_error_rate=1e-9)), outcome)
    await asyncio.wait_for(storing.wait(), TIMEOUT)
    assert pending
    pending.abandon()
    stored.set()
    await turns(5)
    assert not outcome.ended.is_set()
    assert_ended(server, "CANCELLED", "cancelled")
    assert count(server, "model_request_seconds_count", outcome="answered") == 1
    assert count(server, "model_request_seconds_count", outcome="failed") == 0


async def test_a_call_that_has_ended_can_be_abandoned_without_effect(server: Server) -> None:
    answered, refused = Outcome(), Outcome()
    pending = [
        enter(server, Sent(SEVEN), answered),
        enter(server, Sent(pb.RecognizeRequest(image=SEVEN.image, model="x")), refused),
    ]
    await asyncio.wait_for(answered.ended.wait(), TIMEOUT)
    for one in pending:
        assert one
        one.abandon()
    assert count(server, "requests_total", code="OK") == 1
    assert_ended(server, "NOT_FOUND", "unknown_model")


async def test_calls_that_a_stopping_server_can_not_answer_end_as_stopping(busy: Server, gated: GatedModel) -> None:
    outcome = Outcome()
    enter(busy, Sent(SEVEN), outcome)
    closing = asyncio.create_task(busy.repository.catalog.route().batcher.close(0.01))
    await asyncio.wait_for(outcome.ended.wait(), TIMEOUT)
    assert isinstance(outcome.error, Stopping)
    gated.open()
    await closing


async def test_a_call_that_the_queue_sheds_is_refunded_to_its_client(
    start_server: StartServer, gated: GatedModel, tmp_path: Path
) -> None:
    (tmp_path / "tokens.toml").write_text(entry("sorter-7", more="images_per_second = 3"))
    limits = {"max_queue_size": 1, "max_images_per_request": 1}
    server = await start_server(gated, instances=1, tokens=tmp_path / "tokens.toml", **limits)
    sent = Sent(SEVEN, metadata=bearer(TOKEN))
    enter(server, sent, Outcome())
    await gated.run_starts()
    outcomes = [Outcome() for _ in range(9)]
    for outcome in outcomes:
        enter(server, sent, outcome)
    assert not outcomes[0].ended.is_set()
    assert {type(outcome.error) for outcome in outcomes[1:]} == {QueueFull}, "none of these used up the rate limit"
    gated.open()


async def test_a_call_that_gives_way_to_another_client_is_refunded(
    start_server: StartServer, gated: GatedModel, tmp_path: Path
) -> None:
    greedy, polite = Sent(SEVEN, metadata=bearer(TOKEN)), Sent(SEVEN, metadata=bearer("polite"))
    (tmp_path / "tokens.toml").write_text(entry("greedy", more="images_per_second = 3") + entry("polite", "polite"))
    limits = {"max_queue_size": 2, "max_images_per_request": 1}
    server = await start_server(gated, instances=1, tokens=tmp_path / "tokens.toml", **limits)
    enter(server, greedy, Outcome())
    await gated.run_starts()
    first, second, others, again = (Outcome() for _ in range(4))
    for sent, outcome in ((greedy, first), (greedy, second), (polite, others), (greedy, again)):
        enter(server, sent, outcome)
    assert [outcome.ended.is_set() for outcome in (first, second, others, again)] == [False, True, False, True]
    assert [type(outcome.error) for outcome in (second, again)] == [QueueFull] * 2, "not RateLimited"
    gated.open()


async def test_a_fault_of_the_server_is_logged_once_and_fails_its_whole_run(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def decide(*_: object) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(CallGroup, "_decide", decide)
    server = await start_server(max_queue_delay_ms=100)
    with caplog.at_level(logging.ERROR):
        outcomes = await answer_by_run(server, [Sent(SEVEN)] * 3)
    assert {str(outcome.error) for outcome in outcomes if isinstance(outcome.error, Internal)} == {"internal error"}
    assert caplog.text.count("RuntimeError: a secret of the server") == 1
    assert (
        count(server, "requests_total", code="INTERNAL") == count(server, "rejected_requests_total", reason="internal") == 3
    )


async def test_a_reply_that_fails_leaves_the_rest_of_its_run_their_answers(start_server: StartServer) -> None:
    class Broken(Outcome):
        def succeed(self, _: bytes) -> None:
            raise RuntimeError("the connection broke")

        def fail(self, _: RequestError) -> None:
            raise RuntimeError("the connection broke")

    server = await start_server(max_queue_delay_ms=100)
    outcomes = [Outcome(), Broken(), Broken(), Outcome()]
    for outcome, seconds in zip(outcomes, (TIMEOUT, TIMEOUT, 0.01, TIMEOUT), strict=True):
        enter(server, Sent(SEVEN, seconds), outcome)
    for outcome in (outcomes[0], outcomes[3]):
        await asyncio.wait_for(outcome.ended.wait(), TIMEOUT)
        assert outcome.encoded
    assert count(server, "in_flight_requests") == 0


def parameterised(name: str, **kind: object) -> inference.ModelInferRequest:
    request = image_request(np.zeros((1, 28, 28), np.uint8))
    for field, content in kind.items():
        setattr(request.parameters[name], field, content)
    return request


@pytest.mark.parametrize(
    "request_",
    [
        pb.RecognizeRequest(crop=b"a picture"),
        pb.RecognizeRequest(image=bytes(783)),
        image_request(np.zeros((2, 28, 28), np.uint8)),
        image_request(np.zeros((1, 28, 28), np.uint8), raw=False),
        image_request(np.zeros((1, 28, 28), np.uint8), "letters"),
        crop_request([bytes(780)], raw=True),
        parameterised("timeout", int64_param=1000),
        parameterised("sequence_id", int64_param=1),
    ],
    ids=["crop", "short", "two images", "typed", "unknown output", "crops", "timeout", "sequence"],
)
async def test_other_requests_are_left_to_their_own_task_uncounted(
    server: Server, request_: pb.RecognizeRequest | inference.ModelInferRequest
) -> None:
    assert enter(server, Sent(request_), Outcome()) is None
    assert count(server, "requests_total") == count(server, "in_flight_requests") == 0


async def test_malformed_bytes_and_other_methods_are_left_to_their_own_task(server: Server) -> None:
    for method in server.dispatcher.methods.values():
        for encoded in (b"\xff", b"\xff" + SEVEN.SerializeToString(), b""):
            assert server.dispatcher.enter(method, encoded, Call(), Outcome()) is None
    batch = server.dispatcher.methods["/digits.v1.DigitService/RecognizeBatch"]
    assert (
        server.dispatcher.enter(batch, pb.RecognizeBatchRequest(images=bytes(784)).SerializeToString(), Call(), Outcome())
        is None
    )


def test_bytes_that_only_look_like_an_image_are_not_taken_for_one() -> None:
    real = image_request(np.zeros((1, 28, 28), np.uint8)).SerializeToString()
    inner = inference.ModelInferRequest(raw_input_contents=[bytes(IMAGE_BYTES)]).SerializeToString()
    hidden = inference.ModelInferRequest(id="x", raw_input_contents=[inner]).SerializeToString()
    second = real + inner
    assert InferParser().parse(real)
    assert InferParser().parse(hidden) is None
    assert InferParser().parse(second) is None


def test_the_memory_of_request_heads_is_bounded() -> None:
    parser = InferParser()
    image = np.zeros((1, 28, 28), np.uint8)
    for number in range(1000):
        parsed = parser.parse(image_request(image, id=f"piece {number}").SerializeToString())
        assert parsed
        assert inference.ModelInferResponse.FromString(parsed.tail).id == f"piece {number}"
    assert parser.parse(image_request(image, id="x" * 5000).SerializeToString()) is None, "the other way parses it, once"
    assert 0 < len(parser._heads) <= 256
    assert max(map(len, parser._heads)) < 1100


async def test_a_call_is_in_flight_until_it_ends(busy: Server, gated: GatedModel) -> None:
    enter(busy, Sent(SEVEN), Outcome())
    assert count(busy, "in_flight_requests") == 2
    before = time.monotonic()
    gated.open()
    await until(busy.metrics.registry, "digits_in_flight_requests", 0)
    assert count(busy, "request_seconds_sum") < 2 * (time.monotonic() - before) + TIMEOUT
