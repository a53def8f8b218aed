"""Every answer, metric, captured image, span and log line by the run is that of a request with a task of its own."""

import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serving.errors import Code, Stopping
from serving.feedback import capture as capture_module
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.process.server import Server
from serving.telemetry import tracing as tracing_module
from serving.telemetry.spans import Tracing
from tests.support.calls import TIMEOUT
from tests.support.captured_store import rows
from tests.support.credentials import TOKEN, bearer, entry
from tests.support.infer_calls import image_request
from tests.support.metrics import until
from tests.support.model_files import (
    SPECK,
    publish,
    publish_breakable,
    publish_contract_1,
    publish_shifted,
    publish_unsound,
    publish_whole,
)
from tests.support.servers import StartServer
from tests.support.truths import KEY
from tests.support.ways import Outcome, Sent, answer_by_run, answer_in_tasks, readable

Images = NDArray[np.uint8]
Twins = Callable[..., Awaitable[tuple[Server, Server]]]

# Enough for all requests of a test to meet in one run, in both ways alike.
GATHERING = {"max_queue_delay_ms": 300.0}

BLANK, WHITE = np.zeros((28, 28), np.uint8), np.full((28, 28), 255, np.uint8)


@pytest.fixture
def mixed(images: Images) -> list[Images]:
    """Drawn digits, faint and noisy ones, and images that show no digit."""
    noise = np.random.default_rng(5).integers(0, 256, (6, 28, 28), np.uint8)
    return [*images[:30], *(images[30:36] // 2), *np.maximum(images[36:42], noise // 2), *noise, BLANK, WHITE, SPECK, BLANK]


@pytest.fixture
def twins(start_server: StartServer) -> Twins:
    """Starts two servers that draw the same random numbers."""

    async def start(*served: Any, **settings: Any) -> tuple[Server, Server]:
        servers = [await start_server(*served, **{**GATHERING, **settings}) for _ in range(2)]
        for server in servers:
            server._recognizer._policy._random = np.random.default_rng(9)
        return servers[0], servers[1]

    return start


def recognize(images: list[Images], **fields: Any) -> list[Sent]:
    return [Sent(pb.RecognizeRequest(image=image.tobytes(), **fields)) for image in images]


def infer(images: list[Images], *outputs: str, **fields: Any) -> list[Sent]:
    return [Sent(image_request(image[np.newaxis], *outputs, **fields)) for image in images]


def streamed(requests: list[Sent], timeout_ms: int = 0) -> list[Sent]:
    """The same requests, but in a stream."""
    return [
        sent._replace(
            request=pb.RecognizeStreamRequest(id=number, request=sent.request, timeout_ms=timeout_ms)
            if isinstance(sent.request, pb.RecognizeRequest)
            else sent.request,
            streamed=True,
        )
        for number, sent in enumerate(requests)
    ]


def metrics(server: Server) -> dict[tuple[Any, ...], float]:
    """Returns all samples of the service's own metrics, except times."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for metric in server.metrics.registry.collect()
        for sample in metric.samples
        if sample.name.startswith("digits_") and not sample.name.endswith(("seconds_sum", "seconds_bucket"))
        if "timestamp" not in sample.name
    }


async def compare(servers: tuple[Server, Server], requests: list[Sent]) -> list[Outcome]:
    """Sends requests to two servers, each by its way; asserts that answers and metrics are equal; returns the answers."""
    in_tasks, by_run = servers
    expected, found = await answer_in_tasks(in_tasks, requests), await answer_by_run(by_run, requests)
    for sent, one, other in zip(requests, expected, found, strict=True):
        assert readable(sent, other) == readable(sent, one)
    assert metrics(by_run) == pytest.approx(metrics(in_tasks))
    return found


@pytest.mark.parametrize("target", [0.0, 0.002, 1e-9], ids=["default", "strict", "not certified"])
async def test_recognize_is_the_same_both_ways(twins: Twins, mixed: list[Images], target: float) -> None:
    answers = await compare(await twins(), recognize(mixed, target_error_rate=target))
    decisions = {pb.RecognizeResponse.FromString(answer.encoded).decision for answer in answers}
    assert len(decisions) == (2 if target == 1e-9 else 3)


@pytest.mark.parametrize(
    "outputs", [(), ("probabilities",), ("whole", "decisions", "logits"), ("decisions",)], ids=lambda names: "+".join(names)
)
async def test_model_infer_is_the_same_both_ways(twins: Twins, mixed: list[Images], outputs: Any) -> None:
    servers = await twins(audit_rate=0.5)
    await compare(servers, [*infer(mixed, *outputs), *infer(mixed[:5], *outputs, id="piece 7", model_name="digits")])


async def test_requests_of_streams_are_answered_the_same_both_ways(twins: Twins, mixed: list[Images]) -> None:
    requests = [*recognize(mixed), *recognize(mixed[:3], model="letters"), *recognize(mixed[:2], target_error_rate=1.5)]
    requests += [*infer(mixed, "decisions", id="piece 7"), *infer(mixed[:9]), *recognize(mixed[:5])]
    answers = await compare(await twins(audit_rate=0.5), streamed(requests))
    assert not any(answer.error for answer in answers), "an error is an answer, and the stream goes on"
    ids = [pb.RecognizeStreamResponse.FromString(answer.encoded).id for answer in answers[: len(mixed) + 5]]
    assert ids == [*range(len(mixed) + 5)]


@pytest.mark.parametrize(("timeout_ms", "late"), [(100, True), (100_000, False)])
async def test_requests_of_streams_end_by_their_timeout_both_ways(
    twins: Twins, mixed: list[Images], timeout_ms: int, late: bool
) -> None:
    answers = await compare(await twins(), streamed(recognize(mixed[:5]), timeout_ms))
    codes = {pb.RecognizeStreamResponse.FromString(answer.encoded).error.code for answer in answers}
    assert codes == {Code.DEADLINE_EXCEEDED if late else Code.OK}


async def test_streams_of_a_server_that_stops_end_both_ways(twins: Twins, mixed: list[Images]) -> None:
    servers = await twins()
    for server in servers:
        await server.repository.catalog.route().batcher.close(TIMEOUT)
    answers = await compare(servers, streamed(recognize(mixed[:3])))
    assert all(isinstance(answer.error, Stopping) for answer in answers)


async def test_signed_ids_and_audits_are_the_same_both_ways(twins: Twins, mixed: list[Images], tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(KEY)
    answers = await compare(await twins(recognition_key=tmp_path / "keys", audit_rate=0.5), recognize(mixed))
    assert 5 < sum(pb.RecognizeResponse.FromString(answer.encoded).audit for answer in answers) < 30


@pytest.mark.parametrize("outputs", [None, ("decisions",)], ids=["Recognize", "ModelInfer"])
async def test_the_same_images_are_captured_both_ways(
    start_server: StartServer, mixed: list[Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: Any
) -> None:
    monkeypatch.setattr(capture_module, "_IMAGE_TIMEOUT_SECONDS", TIMEOUT)
    servers = []
    for name in ("tasks", "run"):
        settings = {"capture": f"sqlite:///{tmp_path / name}", "audit_rate": 0.3, **GATHERING}
        servers.append(await start_server(**settings))
        servers[-1]._recognizer._policy._random = np.random.default_rng(9)
    requests = infer(mixed, *outputs) if outputs else recognize(mixed)
    answers = await compare((servers[0], servers[1]), requests)
    query = "SELECT place, field_length, model, version, digit, confidence, decision, audited, image FROM captured_images"
    expected, found = (sorted(rows(tmp_path / name, query), key=str) for name in ("tasks", "run"))
    assert found == expected
    assert 5 < len(found) < len(mixed)
    if not outputs:
        ids = {pb.RecognizeResponse.FromString(answer.encoded).recognition_id for answer in answers}
        assert len(ids) == len(mixed)


@pytest.mark.parametrize("contract", [publish_contract_1, publish_whole])
async def test_every_contract_of_a_model_is_the_same_both_ways(
    twins: Twins, mixed: list[Images], tmp_path: Path, contract: Callable[[Path, int], Path]
) -> None:
    contract(tmp_path, 1)
    servers = await twins(None, models=tmp_path)
    answers = [pb.RecognizeResponse.FromString(one.encoded) for one in await compare(servers, recognize(mixed))]
    refused = sum(answer.decision == pb.DECISION_REJECT_NO_DIGIT for answer in answers)
    assert refused == (0 if contract is publish_contract_1 else 5)
    await compare(servers, infer(mixed))


async def test_a_canary_answers_the_same_keys_both_ways(twins: Twins, mixed: list[Images], two_models: Path) -> None:
    requests = [sent for index, image in enumerate(mixed) for sent in recognize([image], key=f"belt {index}")]
    requests += [*recognize(mixed[:3], model="post"), *recognize(mixed[:3], model="letters")]
    answers = await compare(await twins(None, models=two_models), requests)
    versions = Counter(pb.RecognizeResponse.FromString(answer.encoded).model_version for answer in answers)
    assert versions.keys() == {"1", "2", "7", ""}


async def test_a_shadow_compares_the_same_images_both_ways(twins: Twins, mixed: list[Images], tmp_path: Path) -> None:
    publish(tmp_path, 1)
    publish_shifted(tmp_path, 2)
    (tmp_path / "digits" / "routing.toml").write_text("stable = 1\n[shadow]\nversion = 2\n")
    servers = await twins(None, models=tmp_path)
    for send, server in zip((answer_in_tasks, answer_by_run), servers, strict=True):
        await send(server, recognize(mixed))
        await until(server.metrics.registry, "digits_shadow_images_total", len(mixed) - 2)
    assert metrics(servers[1]) == pytest.approx(metrics(servers[0]))


@pytest.mark.parametrize("fault", [publish_unsound, publish_breakable], ids=["NaN", "a failed run"])
async def test_a_failing_model_fails_the_same_calls_both_ways(
    twins: Twins, mixed: list[Images], tmp_path: Path, fault: Callable[[Path, int], Path]
) -> None:
    fault(tmp_path, 1)
    answers = await compare(await twins(None, models=tmp_path), recognize(mixed))
    failed = [answer for answer in answers if answer.error]
    assert len(failed) == (1 if fault is publish_unsound else len(mixed))


async def test_a_full_queue_refuses_the_same_calls_both_ways(twins: Twins, mixed: list[Images]) -> None:
    answers = await compare(await twins(max_queue_size=20, max_images_per_request=20), recognize(mixed))
    assert [answer.error is None for answer in answers] == [True] * 20 + [False] * (len(mixed) - 20)


async def test_a_rate_limit_refuses_the_same_calls_both_ways(twins: Twins, mixed: list[Images], tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(entry("sorter-7", more="images_per_second = 0.001"))
    requests = [sent._replace(metadata=bearer(TOKEN)) for sent in [*recognize(mixed[:4]), *infer(mixed[:4])]]
    answers = await compare(await twins(tokens=tmp_path / "tokens.toml"), requests)
    assert [answer.error is None for answer in answers] == [True] + [False] * 7
    found = await answer_by_run((await twins(tokens=tmp_path / "tokens.toml"))[1], streamed(requests[:4]))
    codes = [pb.RecognizeStreamResponse.FromString(answer.encoded).error.code for answer in found]
    assert codes == [0, *[Code.RESOURCE_EXHAUSTED] * 3]


async def test_an_impossible_target_is_refused_both_ways(twins: Twins, mixed: list[Images]) -> None:
    await compare(await twins(), recognize(mixed[:2], target_error_rate=1.5))


async def test_calls_past_their_deadline_end_late_both_ways(twins: Twins, mixed: list[Images]) -> None:
    requests = [sent._replace(seconds=0.15) if index % 3 else sent for index, sent in enumerate(recognize(mixed))]
    answers = await compare(await twins(), requests)
    assert [answer.error is None for answer in answers] == [index % 3 == 0 for index in range(len(mixed))]


async def test_a_server_that_stops_refuses_both_ways(twins: Twins, mixed: list[Images]) -> None:
    servers = await twins()
    for server in servers:
        await server.repository.catalog.route().batcher.close(TIMEOUT)
    await compare(servers, recognize(mixed[:3]))


async def test_log_lines_are_the_same_both_ways(twins: Twins, mixed: list[Images], caplog: pytest.LogCaptureFixture) -> None:
    servers = await twins()
    requests = [*recognize(mixed[:5]), *recognize(mixed[:2], model="letters"), *infer(mixed[:5])]
    lines = []
    for send, server in zip((answer_in_tasks, answer_by_run), servers, strict=True):
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "serving.api.dispatch"):
            await send(server, requests)
        records = [vars(record) for record in caplog.records if record.name == "serving.api.dispatch"]
        lines.append(sorted(str(record["fields"] | {"duration_ms": 0}) for record in records))
    assert lines[0] == lines[1]
    assert len(lines[0]) == len(requests)


def shape(span: ReadableSpan, others: Iterable[ReadableSpan]) -> tuple[str, ...]:
    """Returns what does not differ between two traces: all but ids and times, with the name of the parent."""
    about = json.loads(span.to_json())
    parents = [
        other["name"]
        for other in map(json.loads, (one.to_json() for one in others))
        if about["parent_id"] == other["context"]["span_id"]
    ]
    return (
        about["name"],
        about["kind"],
        str(about["status"]),
        str(about["attributes"]),
        about["context"]["trace_id"],
        *parents,
    )


async def test_spans_are_the_same_both_ways(
    start_server: StartServer, mixed: list[Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = []
    for send in (answer_in_tasks, answer_by_run):
        tracing, exporter = Tracing(set()), InMemorySpanExporter()
        tracing._provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(tracing_module, "start", lambda tracing=tracing: tracing)
        server = await start_server(**GATHERING)
        trace = f"00-{1:032x}-{2:016x}-01"
        requests = [*recognize(mixed[:3]), *recognize(mixed[:2], model="letters"), *infer(mixed[:3])]
        await send(server, [sent._replace(metadata=(("traceparent", trace),)) for sent in requests])
        traced.append(Counter(shape(span, exporter.get_finished_spans()) for span in exporter.get_finished_spans()))
    assert traced[0] == traced[1]
    assert traced[1].total() == 8 + 2 * 6
