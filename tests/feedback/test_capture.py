import asyncio
import contextlib
import logging
import math
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import create_engine, text

from serving.answers.recognition_id import RecognitionIds, Recognized
from serving.client import Decision, DigitClient, Field, Recognition
from serving.errors import TruthNotStored
from serving.feedback import capture as capture_module
from serving.feedback import capture_store
from serving.feedback.capture import Capture
from serving.feedback.capture_records import CapturedImage, CapturedTruth, CaptureError, NotStored
from serving.feedback.capture_store import Store
from serving.pb.inference import open_inference_pb2 as inference
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serving.telemetry.metrics import Metrics
from tests.conftest import TIMEOUT, StartServer, until, value
from tests.support.postgres import Postgres
from tests.support.service import refused as refused_to_start
from tests.support.service import service as running

Images = NDArray[np.uint8]
NOBODY_CERTIFIES = 1e-6  # an error rate for which every image with ink is rejected


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has answers wait for the disk as long as it takes."""
    monkeypatch.setattr(capture_module, "_PATIENCE_SECONDS", TIMEOUT)
    monkeypatch.setattr(capture_module, "_TRUTH_PATIENCE_SECONDS", TIMEOUT)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "captured.db"


def rows(file: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return connection.execute(query).fetchall()


def nonce(answer: Recognition | Field) -> str:
    return RecognitionIds().read(answer.recognition_id).nonce.hex()


def image(answer: str = "0" * 16, **other: object) -> CapturedImage:
    about = {"place": 0, "field_length": 0, "model": "digits", "version": "1", "digit": 7, "confidence": 0.5}
    rest = {"decision": "low_confidence", "audited": False, "image": b"\x07" * 784}
    return CapturedImage(answer, **(about | rest | other))  # type: ignore[arg-type]


async def test_nothing_is_captured_unless_it_is_asked_for(start_server: StartServer, images: Images) -> None:
    server = await start_server(audit_rate=1.0)
    with DigitClient(f"127.0.0.1:{server.grpc_port}") as client:
        assert not (await asyncio.to_thread(client.recognize, images[0])).captured
    assert value(server.metrics.registry, "digits_captured_total") == 0


async def test_what_is_rejected_is_captured_as_the_network_saw_it_and_what_is_accepted_is_not(
    start_server: StartServer, images: Images, file: Path
) -> None:
    server = await start_server(capture=f"sqlite:///{file}")
    blank = np.zeros((28, 28), np.uint8)
    with DigitClient(f"127.0.0.1:{server.grpc_port}") as client:

        def call(shown: Images, target: float) -> list[Recognition]:
            return client.recognize_batch(shown, target_error_rate=target)

        accepted = await asyncio.to_thread(call, images[:3], 0.0)
        rejected = await asyncio.to_thread(call, np.stack([images[3], blank, images[4]]), NOBODY_CERTIFIES)
    assert {answer.decision for answer in accepted} == {Decision.ACCEPT}
    assert not accepted[0].captured
    assert [answer.captured for answer in rejected] == [True, False, True], "there is nothing to learn from a blank one"
    said = "SELECT answer, place, field_length, model, digit, decision, audited, image FROM captured_images ORDER BY place"
    assert rows(file, said) == [
        (nonce(rejected[0]), place, 0, "digits", rejected[place].digit, "not_certified", 0, shown.tobytes())
        for place, shown in ((0, images[3]), (2, images[4]))
    ]
    [(confidence,)] = rows(file, "SELECT confidence FROM captured_images WHERE place = 0")
    assert confidence == pytest.approx(rejected[0].confidence, abs=1e-4)
    assert value(server.metrics.registry, "digits_captured_total", record="image", outcome="stored") == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600, "nobody else may read it"
    assert {stat.S_IMODE(other.stat().st_mode) for other in file.parent.glob("captured.db-*")} <= {0o600}


async def test_audited_answers_and_whole_fields_are_captured_with_their_truth(
    start_server: StartServer, images: Images, file: Path
) -> None:
    server = await start_server(capture=f"sqlite:///{file}", audit_rate=1.0)
    with DigitClient(f"127.0.0.1:{server.grpc_port}") as client:
        digit = await asyncio.to_thread(client.recognize, images[0])
        field = await asyncio.to_thread(lambda: client.read_field(images[1:4], target_error_rate=NOBODY_CERTIFIES))
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


async def test_truth_about_what_was_never_captured_is_counted_whether_the_database_is_there_or_not(
    start_server: StartServer, images: Images
) -> None:
    server = await start_server(capture="postgresql://digits@127.0.0.1:1/digits")
    with DigitClient(f"127.0.0.1:{server.grpc_port}") as client:
        answer = await asyncio.to_thread(client.recognize, images[0])
        assert await asyncio.to_thread(client.report_truth, [(answer, "7")], "replay") == 1
    await until(server.metrics.registry, "digits_truth_total", 1)
    assert value(server.metrics.registry, "digits_captured_total") == 0


async def test_the_tensor_api_captures_what_it_rejects_where_it_is_asked_for_decisions(
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

    await infer("probabilities", NOBODY_CERTIFIES)
    assert not (await infer("decisions", 0.01)).parameters["captured"].bool_param, "it marks nothing for audit"
    assert value(server.metrics.registry, "digits_captured_total") == 0
    answer = await infer("decisions", NOBODY_CERTIFIES)
    assert answer.parameters["captured"].bool_param
    told = RecognitionIds().read(answer.parameters["recognition_id"].string_param).nonce.hex()
    assert rows(file, "SELECT answer, place FROM captured_images") == [(told, 0), (told, 1)]


def test_what_was_acknowledged_is_there_after_the_whole_service_was_killed(images: Images, file: Path) -> None:
    acknowledged: list[tuple[str, int]] = []
    keyed: list[str] = []
    enough = threading.Event()

    def call(address: str, number: int) -> None:
        with DigitClient(address, TIMEOUT) as client:
            while True:
                try:
                    shown = images[number : number + 1 + number % 3]
                    answers = client.recognize_batch(shown, target_error_rate=NOBODY_CERTIFIES)
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
        assert read_elsewhere(file) > 0  # as operators do, at any time
        before, end = len(acknowledged), time.monotonic() + TIMEOUT
        while len(acknowledged) < before + 100 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(acknowledged) >= before + 100, "it goes on"
        os.killpg(server.process.pid, signal.SIGKILL)
        for caller in callers:
            caller.join(TIMEOUT)
    found = {*rows(file, "SELECT answer, place FROM captured_images")}
    assert {*acknowledged} <= found
    assert {(answer,) for answer in keyed} <= {*rows(file, "SELECT answer FROM captured_truths")}
    assert len(acknowledged) > 300
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]


def until_captured(read: Callable[[], Recognition]) -> Recognition:
    """The first answer that is known to be: a disk may take longer than answers wait, and connecting to a database too."""
    end = time.monotonic() + TIMEOUT
    while not (answer := read()).captured:
        assert time.monotonic() < end
    return answer


def fill(ballast: Path) -> None:
    """Leaves no room on a file system."""
    with ballast.open("wb", buffering=0) as opened, contextlib.suppress(OSError):
        while True:
            opened.write(bytes(4096))


def report_until_it_fails(client: DigitClient, answer: Recognition) -> None:
    for _ in range(10_000):
        client.report_truth([(answer, "7")], "replay")


def test_a_full_disk_costs_no_answer_and_no_acknowledged_record_and_is_over_once_there_is_room(
    small_disk: Path, images: Images
) -> None:
    file, ballast = small_disk / "captured.db", small_disk / "ballast"
    with (
        running("--workers", "1", "--capture", f"sqlite:///{file}", "--log-format", "text") as server,
        DigitClient(server.address, TIMEOUT) as client,
    ):

        def rejected() -> Recognition:
            return client.recognize_batch(images[:50], target_error_rate=NOBODY_CERTIFIES)[0]

        first = until_captured(rejected)
        fill(ballast)
        while (last := rejected()).captured:  # what SQLite had taken of the disk before
            first = last
        with pytest.raises(grpc.RpcError) as refusal:
            report_until_it_fails(client, first)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "report it again later" in str(refusal.value.details())
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
    assert "capture goes on in sqlite:///" in log
    assert "INSERT" not in log, "it has no statements, and with them no images"
    assert len(rows(file, "SELECT 1 FROM captured_images")) == stored
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]


class Stuck(Store):
    """A real store whose disk stands still until it is let go."""

    def __init__(self, url: str):
        super().__init__(url, 30, 1000)
        self.adding, self.go = threading.Event(), threading.Event()

    def add(self, images: object, truths: object) -> None:
        self.adding.set()
        assert self.go.wait(TIMEOUT)
        super().add(images, truths)  # type: ignore[arg-type]


REJECTED = bytes([Decision.REJECT_LOW_CONFIDENCE])


def answered(count: int = 1) -> Recognized:
    """An answer about so many images, all of them rejected."""
    return Recognized("digits", "1", False, bytes([7]) * count, REJECTED * count, [False] * count, [0.5] * count)


def truth(answer: str = "0" * 16) -> CapturedTruth:
    return CapturedTruth(answer, 0, "keying", "7")


@pytest.fixture
async def capture(file: Path) -> AsyncIterator[Capture]:
    made = Capture(Store(f"sqlite:///{file}", 30, 1000), Metrics(), 1000)
    await made.start()
    yield made
    await made.close(TIMEOUT)


@pytest.fixture
def shown(images: Images) -> Images:
    return images[:1].reshape(1, 784)


async def test_an_answer_does_not_wait_for_a_disk_that_stands_still(
    file: Path, shown: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(capture_module, "_TRUTH_PATIENCE_SECONDS", 0.01)
    metrics, store = Metrics(), Stuck(f"sqlite:///{file}")
    capture = Capture(store, metrics, max_waiting=3)
    await capture.start()
    assert not await capture.keep(answered(), shown, math.inf), "nobody knows yet"
    assert await asyncio.to_thread(store.adding.wait, TIMEOUT)
    assert not await capture.keep(answered(), shown, math.inf)
    with pytest.raises(TruthNotStored):
        await capture.keep_truths([truth()])
    assert not await capture.keep(answered(), shown, math.inf), "three wait"
    with pytest.raises(TruthNotStored):
        await capture.keep_truths([truth()])
    assert value(metrics.registry, "digits_captured_total", record="image", outcome="skipped") == 1
    assert value(metrics.registry, "digits_captured_total", record="truth", outcome="skipped") == 1
    store.go.set()
    await capture.close(TIMEOUT)
    assert len(rows(file, "SELECT 1 FROM captured_images")) == 2, "late, and stored all the same"
    assert value(metrics.registry, "digits_captured_total", outcome="stored") == 3


async def test_an_answer_whose_deadline_is_near_does_not_wait(file: Path, shown: Images) -> None:
    store = Stuck(f"sqlite:///{file}")
    capture = Capture(store, Metrics(), 1000)
    await capture.start()
    async with asyncio.timeout(TIMEOUT / 2):  # it would wait twice as long otherwise
        assert not await capture.keep(answered(), shown, time.monotonic() + 0.05)
    store.go.set()
    await capture.close(TIMEOUT)


async def test_an_answer_does_not_wait_for_what_is_known_to_fail(
    file: Path, shown: Images, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Stuck(f"sqlite:///{file}")
    capture = Capture(store, Metrics(), 1000)
    with monkeypatch.context() as broken:
        broken.setattr(store, "add", lambda *_: 1 / 0)
        await capture.start()
        async with asyncio.timeout(TIMEOUT):
            while "capture fails" not in caplog.text:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(TIMEOUT / 2):  # it would wait twice as long otherwise
        assert not await capture.keep(answered(), shown, math.inf)
    store.go.set()
    await capture.close(TIMEOUT)
    assert len(rows(file, "SELECT 1 FROM captured_images")) == 1, "it was tried all the same"


async def test_what_waits_when_the_service_stops_is_stored(
    file: Path, shown: Images, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "_PATIENCE_SECONDS", 0)
    monkeypatch.setattr(capture_module, "_TOGETHER", 7)
    for _ in range(100):
        await capture.keep(answered(), shown, math.inf)
    async with asyncio.timeout(TIMEOUT / 2):
        await capture.close(TIMEOUT)
    assert len(rows(file, "SELECT 1 FROM captured_images")) == 100


async def test_a_mistake_of_ours_costs_what_it_meets_and_no_more(
    shown: Images, capture: Capture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as broken:
        broken.setattr(Store, "add", lambda *_: 1 / 0)
        assert not await capture.keep(answered(), shown, math.inf)
        assert not await capture.keep(answered(), shown, math.inf)
    await capture.keep_truths([truth()])
    assert await capture.keep(answered(), shown, math.inf)
    assert [record.event for record in caplog.records if hasattr(record, "event")] == [
        "capture_failing",
        "capture_recovered",
    ]
    assert "ZeroDivisionError" in caplog.text


async def test_an_answer_of_ten_thousand_is_captured_whole(file: Path, images: Images) -> None:
    capture = Capture(Store(f"sqlite:///{file}", 30, 100_000), Metrics(), 10_000)
    await capture.start()
    assert await capture.keep(answered(10_000), np.tile(images.reshape(-1, 784), (10, 1)), math.inf)
    await capture.close(TIMEOUT)
    assert rows(file, "SELECT count(*), max(place) FROM captured_images") == [(10_000, 9_999)]


def test_images_that_are_too_old_or_too_many_are_deleted_with_their_truth_and_without_a_trace(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_store, "_LATE_SECONDS", -1)
    store = Store(f"sqlite:///{file}", days=1, max_images=3)
    shown = {f"{number:016x}": bytes([64 + number]) * 784 for number in range(6)}
    store.add([image(answer, image=pixels) for answer, pixels in shown.items()], [])
    store.add([], [CapturedTruth(answer, place, "keying", "7") for answer in shown for place in (0, 1)])
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE captured_images SET captured_at = captured_at - 90000 WHERE answer = ?", (f"{5:016x}",))
    store.delete_old()
    kept = [f"{number:016x}" for number in (2, 3, 4)]
    assert rows(file, "SELECT answer FROM captured_images") == rows(file, "SELECT answer FROM captured_truths")
    assert rows(file, "SELECT answer FROM captured_images") == [(answer,) for answer in kept]
    content = b"".join(part.read_bytes() for part in file.parent.glob("captured.db*"))
    assert [answer for answer, pixels in shown.items() if pixels in content] == kept, (
        "the others can't be read from the file"
    )
    store.add([image()], [])
    assert rows(file, "SELECT max(number) FROM captured_images") == [(7,)], "numbers are not given again"
    store.close()


def test_truth_that_was_said_again_is_deleted_and_truth_whose_image_is_on_its_way_is_not(file: Path) -> None:
    store = Store(f"sqlite:///{file}", days=1, max_images=3)
    said = [
        ("0" * 16, 0, "keying", "7"),
        ("0" * 16, 0, "audit", "7"),
        ("0" * 16, 1, "keying", "7"),
        ("f" * 16, 0, "keying", "7"),
    ]
    again = [("0" * 16, 0, "keying", "1"), ("f" * 16, 0, "keying", "1")]
    store.add([], [CapturedTruth(*one) for one in (*said, *again)])
    store.delete_old()
    left = rows(file, "SELECT answer, place, source, value FROM captured_truths ORDER BY number")
    assert left == [*said[1:3], *again]
    store.close()


def test_what_was_deleted_goes_from_the_log_as_soon_as_nobody_reads_it(file: Path) -> None:
    store = Store(f"sqlite:///{file}", days=1e-9, max_images=3)
    store.add([image(image=b"\x55" * 784)], [])
    with contextlib.closing(sqlite3.connect(file)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT 1 FROM captured_images").fetchall()
        store.delete_old()
    store.delete_old()
    assert not any(b"\x55" * 784 in part.read_bytes() for part in file.parent.glob("captured.db*"))
    store.close()


def test_a_file_that_was_moved_away_is_made_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(f"sqlite:///{file}", 30, 1000)
    store.add([image("1" * 16)], [])
    file.rename(file.with_name("moved.db"))
    store.add([image("2" * 16)], [])
    assert rows(file, "SELECT answer FROM captured_images") == [("2" * 16,)]
    assert "was moved or deleted, with what was captured in it" in caplog.text
    store.close()


def read_elsewhere(file: Path) -> int:
    """How many images another process sees, which then lets go of the file."""
    query = "SELECT count(*) FROM captured_images"
    code = f"import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute({query!r}).fetchone())"
    command = [sys.executable, "-c", code, str(file)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout)


def test_others_may_read_while_it_writes(file: Path) -> None:
    store = Store(f"sqlite:///{file}", 30, 1000)
    for count in range(1, 4):
        store.add([image(f"{count:016x}")], [])
        store.delete_old()
        assert read_elsewhere(file) == count, "a reader that goes must not take what is being written with it"
    store.close()
    assert read_elsewhere(file) == 3


async def test_images_grow_old_also_where_no_more_come(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "_RETENTION_SECONDS", 0.05)
    store = Store(f"sqlite:///{file}", days=1e-5, max_images=10)
    store.add([image()], [])
    capture = Capture(store, Metrics(), 1000)
    await capture.start()
    async with asyncio.timeout(TIMEOUT):
        while rows(file, "SELECT 1 FROM captured_images"):
            await asyncio.sleep(0.05)
    await capture.close(TIMEOUT)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("captured.db", "is no URL, expected sqlite:///FILE or postgresql://"),
        ("", "is no URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///{directory}/captured.db?nolock=1", "has options, nolock, that SQLite's file does not take"),
        ("sqlite:///{directory}", "is no file that can be written"),
        ("sqlite:///{directory}/none/captured.db", "/none is no directory that can be written to"),
        ("mysql://digits:do-not-show-me@db/digits", "expected sqlite:///FILE or postgresql://"),
        ("postgresql+nonsense://digits:do-not-show-me@db/digits", "whose driver is not there"),
        ("postgresql+nonsense://db/digits?user=digits&password=do-not-show-me", "whose driver is not there"),
        ("postgresql+asyncpg://digits:do-not-show-me@db/digits", "whose driver is not there"),
        ("postgresql://digits:do-not-show-me@db:port/digits", "is no URL"),
    ],
)
def test_a_database_that_cannot_be_is_refused_and_no_password_shown(url: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CaptureError) as refusal:
        Store(url.format(directory=tmp_path), 30, 1000)
    assert reason in str(refusal.value)
    assert "do-not-show-me" not in str(refusal.value)


def test_a_server_does_not_start_on_a_database_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, although it is long enough to be read as the header of one" * 2)
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE captured_images (number INTEGER PRIMARY KEY, picture BLOB)")
    for name, reason in (
        ("none/captured.db", "/none is no directory that can be written to"),
        ("text.db", "text.db: file is not a database"),
        ("other.db", "other.db: its table captured_images is another's: it has no column answer"),
    ):
        status, log = refused_to_start("--capture", f"sqlite:///{tmp_path}/{name}", "--workers", "1")
        assert status == 1
        assert reason in log
        assert "Traceback" not in log


def test_several_replicas_capture_in_one_postgresql_and_outlive_its_absence(postgres: Postgres, images: Images) -> None:
    flags = ("--workers", "1", "--capture", postgres.url)
    with (
        running(*flags) as one,
        running(*flags) as other,
        DigitClient(one.address) as client,
        DigitClient(other.address) as second,
    ):

        def rejected(by: DigitClient) -> Recognition:
            return by.recognize(images[0], target_error_rate=NOBODY_CERTIFIES)

        def captured(by: DigitClient) -> Recognition:
            return until_captured(lambda: rejected(by))

        assert not rejected(client).captured, "the database is not there, and the image is read"
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
    assert "capture goes on in postgresql://digits:***@127.0.0.1" in logs
    assert "do-not-show-me" not in logs
    engine = create_engine(postgres.url)
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT answer, image FROM captured_images ORDER BY number")).all()
        truths = connection.execute(text("SELECT answer, source, value FROM captured_truths ORDER BY number")).all()
    engine.dispose()
    assert {nonce(answer) for answer in answers} <= {answer for answer, _ in stored}
    assert {bytes(kept) for _, kept in stored} == {images[0].tobytes()}
    assert truths == [(nonce(answer), "keying", "7") for answer in answers[:2]]


def test_postgresql_deletes_what_is_too_old_and_too_much(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_store, "_LATE_SECONDS", -1)
    postgres.start()
    store = Store(postgres.url, days=1, max_images=2)
    store.add(
        [image(f"{number:016x}") for number in range(5)],
        [CapturedTruth(f"{number:016x}", 0, "keying", "7") for number in range(5)],
    )
    store.delete_old()
    engine = create_engine(postgres.url)
    with engine.connect() as connection:
        left = connection.execute(text("SELECT answer FROM captured_images UNION ALL SELECT answer FROM captured_truths"))
        assert sorted(left.scalars()) == [f"{number:016x}" for number in (3, 3, 4, 4)]
    engine.dispose()
    store.close()


def test_a_store_says_what_its_database_says_and_no_more(file: Path) -> None:
    store = Store(f"sqlite:///{file}", 30, 1000)
    store.add([], [])
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DROP TABLE captured_images")
    with pytest.raises(NotStored) as failure:
        store.add([image()], [])
    assert str(failure.value) == "no such table: captured_images"
    store.add([image()], [])  # it looks again
    store.close()
