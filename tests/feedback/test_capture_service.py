import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import create_engine, text

from serving.answers.recognition_id import RecognitionIds
from serving.client import Decision, DigitClient, Field, Recognition
from serving.feedback import capture as capture_module
from serving.pb.inference import open_inference_pb2 as inference
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.support.calls import TIMEOUT
from tests.support.captured_store import count_in_another_process, rows
from tests.support.metrics import until, value
from tests.support.postgres import Postgres
from tests.support.servers import StartServer
from tests.support.service import refused as refused_to_start
from tests.support.service import service as running

Images = NDArray[np.uint8]
NEVER_CERTIFIED = 1e-6  # no threshold is certified for this error rate, so each image with ink is rejected


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets answers wait for the disk as long as it takes."""
    monkeypatch.setattr(capture_module, "_IMAGE_TIMEOUT_SECONDS", TIMEOUT)
    monkeypatch.setattr(capture_module, "_TRUTH_TIMEOUT_SECONDS", TIMEOUT)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "captured.db"


def nonce(answer: Recognition | Field) -> str:
    return RecognitionIds().parse(answer.recognition_id).nonce.hex()


async def test_nothing_is_captured_by_default(start_server: StartServer, images: Images) -> None:
    server = await start_server(audit_rate=1.0)
    with DigitClient(f"127.0.0.1:{server.grpc_port}") as client:
        assert not (await asyncio.to_thread(client.recognize, images[0])).captured
    assert value(server.metrics.registry, "digits_captured_total") == 0


async def test_rejected_images_are_captured_and_accepted_ones_are_not(
    start_server: StartServer, images: Images, file: Path
) -> None:
    server = await start_server(capture=f"sqlite:///{file}")
    blank = np.zeros((28, 28), np.uint8)
    with DigitClient(f"127.0.0.1:{server.grpc_port}") as client:

        def call(shown: Images, target: float) -> list[Recognition]:
            return client.recognize_batch(shown, target_error_rate=target)

        accepted = await asyncio.to_thread(call, images[:3], 0.0)
        rejected = await asyncio.to_thread(call, np.stack([images[3], blank, images[4]]), NEVER_CERTIFIED)
    assert {answer.decision for answer in accepted} == {Decision.ACCEPT}
    assert not accepted[0].captured
    assert [answer.captured for answer in rejected] == [True, False, True], "a blank image is not worth learning from"
    columns = "answer, place, field_length, model, digit, decision, audited, image"
    assert rows(file, f"SELECT {columns} FROM captured_images ORDER BY place") == [  # noqa: S608
        (nonce(rejected[0]), place, 0, "digits", rejected[place].digit, "not_certified", 0, shown.tobytes())
        for place, shown in ((0, images[3]), (2, images[4]))
    ]
    [(confidence,)] = rows(file, "SELECT confidence FROM captured_images WHERE place = 0")
    assert confidence == pytest.approx(rejected[0].confidence, abs=1e-4)
    assert value(server.metrics.registry, "digits_captured_total", record="image", outcome="stored") == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600, "only its owner may read it"
    assert {stat.S_IMODE(other.stat().st_mode) for other in file.parent.glob("captured.db-*")} <= {0o600}


async def test_audited_answers_and_whole_fields_are_captured_with_truth(
    start_server: StartServer, images: Images, file: Path
) -> None:
    server = await start_server(capture=f"sqlite:///{file}", audit_rate=1.0)
    with DigitClient(f"127.0.0.1:{server.grpc_port}") as client:
        digit = await asyncio.to_thread(client.recognize, images[0])
        field = await asyncio.to_thread(lambda: client.read_field(images[1:4], target_error_rate=NEVER_CERTIFIED))
        await asyncio.to_thread(client.report_truth, [(digit, 7)], "audit")
        await asyncio.to_thread(client.report_truth, [(field, "123")], "keying")
    assert digit.captured
    assert field.captured
    found = rows(file, "SELECT answer, place, field_length, decision, audited, image FROM captured_images ORDER BY number")
    assert found == [
        (nonce(digit), 0, 0, "accept", 1, images[0].tobytes()),
        *((nonce(field), place, 3, "not_certified", 0, images[1 + place].tobytes()) for place in range(3)),
    ]
    truths = rows(file, "SELECT answer, place, source, value FROM captured_truths ORDER BY number")
    assert truths == [(nonce(digit), 0, "audit", "7"), (nonce(field), 0, "keying", "123")]


async def test_truth_about_uncaptured_images_needs_no_database(start_server: StartServer, images: Images) -> None:
    server = await start_server(capture="postgresql://digits@127.0.0.1:1/digits")
    with DigitClient(f"127.0.0.1:{server.grpc_port}") as client:
        answer = await asyncio.to_thread(client.recognize, images[0])
        assert await asyncio.to_thread(client.report_truth, [(answer, "7")], "replay") == 1
    await until(server.metrics.registry, "digits_truth_total", 1)
    assert value(server.metrics.registry, "digits_captured_total") == 0


async def test_the_tensor_api_captures_its_rejects_if_asked_for_decisions(
    start_server: StartServer, images: Images, file: Path
) -> None:
    server = await start_server(capture=f"sqlite:///{file}", audit_rate=1.0)

    async def infer(output: str, target: float) -> inference.ModelInferResponse:
        request = inference.ModelInferRequest(model_name="digits", raw_input_contents=[images[:2].tobytes()])
        request.inputs.add(name="images", datatype="UINT8", shape=[2, 28, 28])
        request.outputs.add(name=output)
        request.parameters["target_error_rate"].double_param = target
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            answer: inference.ModelInferResponse = await GRPCInferenceServiceStub(channel).ModelInfer(
                request, timeout=TIMEOUT
            )
            return answer

    await infer("probabilities", NEVER_CERTIFIED)
    assert not (await infer("decisions", 0.01)).parameters["captured"].bool_param, "the tensor API marks nothing for audit"
    assert value(server.metrics.registry, "digits_captured_total") == 0
    answer = await infer("decisions", NEVER_CERTIFIED)
    assert answer.parameters["captured"].bool_param
    answered = RecognitionIds().parse(answer.parameters["recognition_id"].string_param).nonce.hex()
    assert rows(file, "SELECT answer, place FROM captured_images") == [(answered, 0), (answered, 1)]


def test_acknowledged_records_survive_a_kill_of_the_whole_service(images: Images, file: Path) -> None:
    acknowledged: list[tuple[str, int]] = []
    keyed: list[str] = []
    enough = threading.Event()

    def call(address: str, number: int) -> None:
        with DigitClient(address, TIMEOUT) as client:
            while True:
                try:
                    shown = images[number : number + 1 + number % 3]
                    answers = client.recognize_batch(shown, target_error_rate=NEVER_CERTIFIED)
                    if answers[0].captured:
                        acknowledged.extend((nonce(answer), answer.place) for answer in answers)
                    if client.report_truth([(answers[0], "7")], "keying"):
                        keyed.append(nonce(answers[0]))
                except grpc.RpcError:
                    return
                if len(keyed) > 300:
                    enough.set()

    with running("--workers", "2", "--capture", f"sqlite:///{file}") as server:
        callers = [threading.Thread(target=call, args=(server.address, number)) for number in range(8)]
        for caller in callers:
            caller.start()
        assert enough.wait(TIMEOUT)
        assert count_in_another_process(file) > 0  # as operators do, at any time
        before, end = len(acknowledged), time.monotonic() + TIMEOUT
        while len(acknowledged) < before + 100 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(acknowledged) >= before + 100, "capture continues after the other process has read the file"
        os.killpg(server.process.pid, signal.SIGKILL)
        for caller in callers:
            caller.join(TIMEOUT)
    found = {*rows(file, "SELECT answer, place FROM captured_images")}
    assert {*acknowledged} <= found
    assert {(answer,) for answer in keyed} <= {*rows(file, "SELECT answer FROM captured_truths")}
    assert len(acknowledged) > 300
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]


def until_captured(recognize: Callable[[], Recognition]) -> Recognition:
    """Returns the first captured answer. A disk may take longer than answers wait, and so may connecting to a database."""
    end = time.monotonic() + TIMEOUT
    while not (answer := recognize()).captured:
        assert time.monotonic() < end
    return answer


def fill(ballast: Path) -> None:
    """Fills up the file system with a file."""
    with ballast.open("wb", buffering=0) as opened, contextlib.suppress(OSError):
        while True:
            opened.write(bytes(4096))


def report_until_it_fails(client: DigitClient, answer: Recognition) -> None:
    for _ in range(10_000):
        client.report_truth([(answer, "7")], "replay")


def test_a_full_disk_costs_no_answer_and_no_acknowledged_record(small_disk: Path, images: Images) -> None:
    file, ballast = small_disk / "captured.db", small_disk / "ballast"
    with (
        running("--workers", "1", "--capture", f"sqlite:///{file}", "--log-format", "text") as server,
        DigitClient(server.address, TIMEOUT) as client,
    ):

        def rejected() -> Recognition:
            return client.recognize_batch(images[:50], target_error_rate=NEVER_CERTIFIED)[0]

        first = until_captured(rejected)
        fill(ballast)
        while (last := rejected()).captured:  # until SQLite has used up the blocks that it already had
            first = last
        with pytest.raises(grpc.RpcError) as refusal:
            report_until_it_fails(client, first)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "report them again later" in str(refusal.value.details())
        assert server.scrape("digits_captured_total", record="image", outcome="failed") >= 50
        counted = server.scrape("digits_truth_total")
        ballast.unlink()
        until_captured(rejected)
        assert client.report_truth([(first, "7")], "keying") == 1
        assert server.scrape("digits_truth_total") == counted + 1
        stored = server.scrape("digits_captured_total", record="image", outcome="stored")
        os.killpg(server.process.pid, signal.SIGTERM)
        _, log = server.end()
    assert "capture fails in sqlite:///" in log
    assert "database or disk is full" in log
    assert "capture works again in sqlite:///" in log
    assert "INSERT" not in log, "statements hold images"
    assert len(rows(file, "SELECT 1 FROM captured_images")) == stored
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]


def test_a_server_refuses_to_start_on_an_unusable_database(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, although it is long enough to be read as the header of one" * 2)
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE captured_images (number INTEGER PRIMARY KEY, picture BLOB)")
    for name, reason in (
        ("none/captured.db", "/none is not a writable directory"),
        ("text.db", "text.db: file is not a database"),
        ("other.db", "other.db: table captured_images belongs to another program: it has no column answer"),
    ):
        status, log = refused_to_start("--capture", f"sqlite:///{tmp_path}/{name}", "--workers", "1")
        assert status == 1
        assert reason in log
        assert "Traceback" not in log


def test_replicas_share_one_postgresql_and_survive_its_outage(postgres: Postgres, images: Images) -> None:
    flags = ("--workers", "1", "--capture", postgres.url)
    with (
        running(*flags) as one,
        running(*flags) as other,
        DigitClient(one.address) as client,
        DigitClient(other.address) as second,
    ):

        def rejected(by: DigitClient) -> Recognition:
            return by.recognize(images[0], target_error_rate=NEVER_CERTIFIED)

        def captured(by: DigitClient) -> Recognition:
            return until_captured(lambda: rejected(by))

        assert not rejected(client).captured, "the image is recognized although the database is down"
        postgres.start()
        answers = [captured(client), captured(second)]
        assert client.report_truth([(answer, "7") for answer in answers], "keying") == 2
        postgres.stop()
        assert not rejected(second).captured
        with pytest.raises(grpc.RpcError) as refusal:
            second.report_truth([(answers[0], "7")], "replay")
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        postgres.start()
        answers.append(captured(second))
        for server in (one, other):
            os.killpg(server.process.pid, signal.SIGTERM)
        logs = one.end()[1] + other.end()[1]
    assert "capture fails in postgresql://digits:***@127.0.0.1" in logs
    assert "capture works again in postgresql://digits:***@127.0.0.1" in logs
    assert "do-not-show-me" not in logs
    engine = create_engine(postgres.url)
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT answer, image FROM captured_images ORDER BY number")).all()
        truths = connection.execute(text("SELECT answer, source, value FROM captured_truths ORDER BY number")).all()
    engine.dispose()
    assert {nonce(answer) for answer in answers} <= {answer for answer, _ in stored}
    assert {bytes(kept) for _, kept in stored} == {images[0].tobytes()}
    assert truths == [(nonce(answer), "keying", "7") for answer in answers[:2]]
