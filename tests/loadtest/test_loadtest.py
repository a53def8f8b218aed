import asyncio
import contextlib
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trustme

from serving.cli.main import main
from serving.loadtest.calls import KINDS, GrpcTarget, StreamCaller
from serving.loadtest.generator import Generator, samples
from serving.loadtest.knee import find_knee, judge
from serving.loadtest.objectives import ObjectiveError, broken, parse
from serving.loadtest.plan import Plan, Rpc
from serving.loadtest.processes import LoadTestError, Progress, measure, shares
from serving.loadtest.report import sender_too_slow
from serving.loadtest.tally import Tally
from serving.loadtest.target import Outcome
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.process.server import Server
from tests.support.credentials import TOKEN, Files, entry, issue
from tests.support.metrics import until, value
from tests.support.service import DIGITS, Service, service

Answer = Callable[[pb.RecognizeRequest, Any], Awaitable[pb.RecognizeResponse]]

DIGIT_OF = {image.tobytes(): digit for digit, image in enumerate(samples())}
TIMEOUT = 90.0


@contextlib.asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[GrpcTarget]:
    """Runs a server whose Recognize is `answer`."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        answer, pb.RecognizeRequest.FromString, pb.RecognizeResponse.SerializeToString
    )
    methods = grpc.method_handlers_generic_handler("digits.v1.DigitService", {"Recognize": handler})
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield GrpcTarget(f"127.0.0.1:{port}")
    await server.stop(0)


def right(request: pb.RecognizeRequest) -> pb.RecognizeResponse:
    return pb.RecognizeResponse(digit=DIGIT_OF[request.image])


async def run_plan(target: GrpcTarget, processes: int = 1, **plan: Any) -> Tally:
    async with asyncio.timeout(TIMEOUT):
        one = Plan(**{"seconds": 1.0, "warmup_seconds": 0.2, **plan})
        return await asyncio.to_thread(measure, one, target, processes)


def slower_than(tally: Tally, milliseconds: float) -> int:
    """Counts the answers that took longer."""
    counts = tally.microseconds.get_recorded_iterator()
    return sum(one.count_added_in_this_iter_step for one in counts if one.value_iterated_to > milliseconds * 1000)


@pytest.mark.parametrize("load", [{"callers": 4}, {"rate": 50.0}])
@pytest.mark.parametrize("rpc", [*KINDS, "stream"])
async def test_every_rpc_in_either_loop_gets_right_answers(server: Server, rpc: Rpc, load: dict[str, Any]) -> None:
    images = {"batch": 16, "field": 5, "infer": 3}.get(rpc, 1)
    tally = await run_plan(GrpcTarget(f"127.0.0.1:{server.grpc_port}"), rpc=rpc, images=images, **load)
    assert tally.answered > 0
    assert (dict(tally.codes), tally.wrong, tally.errors) == ({"OK": tally.calls}, 0, 0.0)
    assert tally.microseconds.get_total_count() == tally.calls


async def test_an_open_loop_counts_all_calls_due_while_the_server_stalls() -> None:
    async def stall_once(request: pb.RecognizeRequest, _: Any) -> pb.RecognizeResponse:
        if next(calls) == 40:
            time.sleep(1.0)  # noqa: ASYNC251 # blocks the event loop: no call is answered
        return right(request)

    calls = itertools.count()
    async with answering(stall_once) as target:
        opened = await run_plan(target, rate=100.0, arrivals="fixed", seconds=2.0, warmup_seconds=0.001)
        calls = itertools.count()
        closed = await run_plan(target, callers=1, seconds=2.0, warmup_seconds=0.001)
    # Of the 100 calls due in that second, those of the first 0.9 s waited for 0.1 s or longer.
    assert slower_than(opened, 95) >= 85
    assert slower_than(closed, 900) == 1
    assert slower_than(opened, 900) >= 5


async def test_failed_calls_and_wrong_answers_are_counted() -> None:
    async def refuse_or_err(request: pb.RecognizeRequest, context: Any) -> pb.RecognizeResponse:
        number = next(calls)
        if number % 4 == 2:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        answer = right(request)
        if number % 4 == 3:
            answer.digit = (answer.digit + 1) % 10
        return answer

    calls = itertools.count()
    async with answering(refuse_or_err) as target:
        tally = await run_plan(target, callers=1)
    assert set(tally.codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert tally.codes["RESOURCE_EXHAUSTED"] == pytest.approx(tally.calls / 4, abs=1)
    assert tally.wrong == pytest.approx(tally.calls / 4, abs=1)
    assert tally.errors == pytest.approx(0.5, abs=2 / tally.calls)
    assert tally.answered == pytest.approx(tally.calls / 2, abs=2)


async def test_late_and_broken_calls_are_counted_and_the_test_ends() -> None:
    async def slow(request: pb.RecognizeRequest, _: Any) -> pb.RecognizeResponse:
        if next(calls) > 12:
            await asyncio.sleep(TIMEOUT)
        return right(request)

    calls = itertools.count()
    async with answering(slow) as target:
        tally = await run_plan(target, rate=20.0, timeout_seconds=0.5)
    assert tally.codes["DEADLINE_EXCEEDED"] > 0
    assert set(tally.codes) <= {"OK", "DEADLINE_EXCEEDED"}

    async def stop(request: pb.RecognizeRequest, _: Any) -> pb.RecognizeResponse:
        if next(calls) == 20:
            stopped.set()
        return right(request)

    calls, stopped = itertools.count(), asyncio.Event()
    async with answering(stop) as target:
        testing = asyncio.create_task(run_plan(target, rate=50.0, timeout_seconds=2.0))
        await stopped.wait()
    tally = await testing
    assert tally.codes["OK"] > 0
    assert tally.codes["UNAVAILABLE"] > 0


async def test_a_broken_stream_is_opened_again(server: Server) -> None:
    target = GrpcTarget(f"127.0.0.1:{server.grpc_port}")
    testing = asyncio.create_task(run_plan(target, rpc="stream", rate=50.0, seconds=2.0, connections=1))
    registry = server.metrics.registry
    async with asyncio.timeout(TIMEOUT):
        while value(registry, "digits_requests_total", code="OK") < 20:
            await asyncio.sleep(0.01)
        server._streams.stop()
        await until(registry, "digits_requests_total", 1, code="UNAVAILABLE")
        before = value(registry, "digits_requests_total", code="OK")
    tally = await testing
    assert value(registry, "digits_requests_total", code="OK") > before
    assert set(tally.codes) <= {"OK", "UNAVAILABLE"}


async def test_a_stream_that_ends_during_a_write_is_no_internal_error() -> None:
    async def outcome(broken: Callable[[], Awaitable[None]]) -> Outcome:
        caller = StreamCaller(channel, Plan(rpc="stream", callers=1), ())
        caller._stream = SimpleNamespace(write=lambda _: broken())
        caller._reading = asyncio.create_task(asyncio.sleep(TIMEOUT))
        try:
            return await caller.call(b"")
        finally:
            caller._reading.cancel()

    async def fail_in_grpc() -> None:
        call: Any = channel.stream_stream("/a/b")()
        call._cython_call.set_internal_error("as gRPC does for a failed write")
        await call._raise_for_status()

    async def fail_in_server() -> None:
        raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "internal error")

    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        assert (await outcome(fail_in_grpc)).code == "UNAVAILABLE"
        assert (await outcome(fail_in_server)).code == "INTERNAL"


async def test_several_processes_send_the_load_of_one_and_add_up(server: Server) -> None:
    progress: list[Progress] = []
    plan = Plan(rate=60.0, arrivals="fixed", seconds=2.0, warmup_seconds=0.5)
    target = GrpcTarget(f"127.0.0.1:{server.grpc_port}")
    tally = await asyncio.to_thread(measure, plan, target, 3, progress.append)
    assert tally.calls == pytest.approx(120, abs=3)
    assert sum(one.latest.calls for one in progress) == tally.calls
    assert [one.seconds for one in progress] == sorted(one.seconds for one in progress)


def test_callers_and_rates_are_divided_among_processes() -> None:
    assert [one.callers for one in shares(Plan(callers=5), 3)] == [2, 2, 1]
    assert [one.callers for one in shares(Plan(callers=2), 4)] == [1, 1]
    assert [one.rate for one in shares(Plan(rate=90.0), 3)] == [30.0] * 3
    assert len({one.seed for one in shares(Plan(rate=90.0), 3)}) == 3


def test_an_absent_or_refusing_service_is_named(server_address: str) -> None:
    with pytest.raises(LoadTestError, match=r"127\.0\.0\.1:1 answers a first call with UNAVAILABLE: .*refused"):
        measure(Plan(callers=1), GrpcTarget("127.0.0.1:1"), 1)
    with pytest.raises(LoadTestError, match=r"NOT_FOUND: .*nobody"):
        measure(Plan(callers=1, model="nobody"), GrpcTarget(server_address), 1)


@pytest.fixture(scope="module")
def service_() -> Iterator[Service]:
    with service() as started:
        yield started


@pytest.fixture
def server_address(service_: Service) -> str:
    return service_.address


def load(address: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [*DIGITS, "loadtest", "--address", address, "--seconds", "1", "--warmup", "0.2", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)


def test_the_command_prints_a_table_and_exits_by_the_objectives(server_address: str, tmp_path: Path) -> None:
    written = tmp_path / "numbers.json"
    ran = load(server_address, "--rate", "40", "--slo", "p99=30s,errors=0", "--json", str(written))
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr or "sent" in ran.stderr  # on a busy machine the sender itself may be reported as slow
    assert re.search(r"^\| 40 a second \| .* \| - \| 0 \|$", ran.stdout, re.MULTILINE)
    found = json.loads(written.read_text())
    assert found["codes"] == {"OK": found["calls"]}
    assert found["milliseconds"]["p50"] <= found["milliseconds"]["p99"] <= found["milliseconds"]["max"]
    assert (found["address"], found["missed"]) == (server_address, [])
    ran = load(server_address, "--callers", "2", "--slo", "p50=1us,errors=0")
    assert ran.returncode == 3
    assert re.search(r"^missed: p50=0\.001ms, is [\d.]+ms$", ran.stdout, re.MULTILINE)


async def test_the_knee_is_found_at_the_capacity_of_the_server(tmp_path: Path) -> None:
    """The server answers one call at a time, in 10 ms each: fewer than 100 per second."""

    async def one_at_a_time(request: pb.RecognizeRequest, _: Any) -> pb.RecognizeResponse:
        async with turn:
            await asyncio.sleep(0.01)
        return right(request)

    turn, picture, written = asyncio.Lock(), tmp_path / "knee.png", tmp_path / "knee.json"
    async with answering(one_at_a_time) as target:
        flags = ["--find-knee", "--rate", "30", "--slo", "p90=300ms,errors=0", "--png", str(picture), "--json", str(written)]
        ran = await asyncio.to_thread(load, target.address, *flags)
        assert ran.returncode == 0, ran.stderr
        found = json.loads(written.read_text())
        assert 30 <= found["knee"]["calls_per_second"] <= 120  # up to ten waiting calls are not taken for a queue
        assert f"the knee: {found['knee']['calls_per_second']:,.0f} calls a second" in ran.stdout
        assert picture.read_bytes().startswith(b"\x89PNG")
        ran = await asyncio.to_thread(load, target.address, "--find-knee", "--slo", "p50=1us")
        assert (ran.returncode, "the first rate, 100 calls a second, misses: p50=0.001ms" in ran.stdout) == (3, True)


def test_the_search_for_the_knee_ends_when_the_service_dies() -> None:
    with service("--workers", "1") as started:
        flags = ["--find-knee", "--rate", "20", "--slo", "p99=20s"]
        command = [*DIGITS, "loadtest", "--address", started.address, "--seconds", "1", "--warmup", "0.2", *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as testing:
            assert testing.stderr is not None
            assert "20 calls a second: kept" in testing.stderr.readline()
            started.process.kill()
            output, errors = testing.communicate(timeout=TIMEOUT)
    assert (testing.returncode, output) == (1, ""), errors
    assert "UNAVAILABLE" in errors.splitlines()[-1]


@pytest.mark.parametrize("capacity", [150.0, 1000.0, 31_234.0])
def test_the_search_ends_within_five_percent_despite_a_chance_miss(
    capacity: float,
) -> None:
    tries: set[float] = set()

    def carry_out(rate: float) -> Any:
        by_chance = rate == 100.0 and rate not in tries
        tries.add(rate)
        tally = Tally()
        for _ in range(1000):
            tally.count("OK", 0.001 if rate <= capacity and not by_chance else 1.0, right=True)
        tally.ended = tally.answered = 1000
        return judge(rate, tally, 10.0, parse("p99=20ms"))

    best, steps = find_knee(carry_out, 100.0)
    assert best is not None
    assert capacity / 1.05 <= best.rate <= capacity
    assert len(steps) < 25


async def test_a_slow_sender_is_reported() -> None:
    class Caller:
        async def call(self, request: bytes) -> Outcome:
            time.sleep(self.seconds)  # noqa: ASYNC251 # stands for slow work of the sender itself
            await asyncio.sleep(0.1)
            return Outcome("OK", (7,))

        async def close(self) -> None:
            pass

        def __init__(self, seconds: float):
            self.seconds = seconds

    async def sent(seconds: float) -> Tally:
        plan = Plan(rate=150.0, arrivals="fixed", seconds=1.0, warmup_seconds=0.0)
        generator = Generator(plan, [Caller(seconds)], [(b"", (7,))])
        await generator.run(time.monotonic())
        return generator.take_tally()

    slow = await sent(0.014)  # twice the interval between calls
    assert slow.late_milliseconds(99) > 500
    assert re.match(r"the sender is too slow: 1 % of the calls were sent [\d.]+ ms late or later", sender_too_slow(slow))


@pytest.mark.parametrize(
    ("codes", "late", "warning"),
    [
        ({"OK": 100}, 0.001, ""),
        ({"OK": 100}, 0.05, "the sender is too slow: 1 % of the calls were sent 50.0 ms late or later"),
        ({"RESOURCE_EXHAUSTED": 100}, 0.05, ""),
        ({}, 0.0, ""),
        ({"OK": 99}, 0.05, ""),  # too few calls for a p99
        ({"OK": 99, "UNSENT": 1}, 0.001, "1 of 100 calls were never sent"),
    ],
)
def test_only_a_slow_sender_is_reported(codes: dict[str, int], late: float, warning: str) -> None:
    tally = Tally()
    for code, count in codes.items():
        for _ in range(count):
            tally.sent(late)
            tally.count(code, 0.1, right=True)
    assert sender_too_slow(tally).startswith(warning)
    assert bool(sender_too_slow(tally)) is bool(warning)


def test_a_rate_whose_answers_fall_behind_is_not_carried() -> None:
    tally = Tally()
    for _ in range(1000):
        tally.count("OK", 0.5, right=True)
    tally.ended = tally.answered = 900
    assert judge(100.0, tally, 10.0, parse("p99=1s")).broken == ("falls behind: 90 of 100 calls a second end",)


def test_calls_that_fail_at_once_are_not_taken_for_a_queue() -> None:
    tally = Tally()
    for number in range(1000):
        tally.count("OK" if number % 10 else "RESOURCE_EXHAUSTED", 0.001, right=True)
    tally.ended, tally.answered = 1000, 900
    assert judge(100.0, tally, 10.0, parse("errors=20%")).broken == ()


@pytest.mark.parametrize(
    ("text", "missed"),
    [
        ("p99=20ms", ["p99=20ms, is 30.015ms"]),
        ("p50=20ms,errors=20%", []),
        ("p99.9=0.02s, errors=0.1", ["p99.9=20ms, is 30.015ms", "errors=10%, is 20%"]),
        ("p50=11000us", []),
    ],
)
def test_objectives_are_parsed_and_judged(text: str, missed: list[str]) -> None:
    tally = Tally()
    for milliseconds in (10, 10, 10, 30):
        tally.count("OK", milliseconds / 1000, right=True)
    tally.count("UNAVAILABLE", 0.0, right=False)
    assert broken(parse(text), tally) == missed


def test_a_service_without_answers_misses_its_objectives() -> None:
    tally = Tally()
    tally.count("UNAVAILABLE", 0.0, right=False)
    assert broken(parse("p99=20ms"), tally) == ["p99=20ms, and no call was answered"]


@pytest.mark.parametrize(
    "text",
    ["", "p99", "p99=20", "p0=1ms", "p00.0=1ms", "p100=1ms", "errors=101%", "errors=-1", "p99=20ms;errors=1%", "p99=nan"],
)
def test_an_invalid_objective_is_refused(text: str) -> None:
    with pytest.raises(ObjectiveError, match=r"expected for example p99=20ms or errors=0\.1%"):
        parse(text)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--find-knee"], "--find-knee needs --slo"),
        (["--find-knee", "--slo", "errors=1%", "--callers", "3"], "takes no --callers"),
        (["--rate", "5", "--callers", "3"], "not allowed with"),
        (["--png", "x.png"], "--png needs --find-knee"),
        (["--json", "."], "is a directory"),
        (["--timeout", "0"], "--timeout must be a number above 0"),
        (["--processes", "1001"], "--processes must be at most 1,000"),
        (["--images", "3"], "--rpc recognize takes one image per call"),
        (["--slo", "fast"], "'fast' is not an objective"),
        (["--rate", "0"], "must be a number above 0"),
        (["--arrivals", "fixed"], "--arrivals needs an open loop"),
        (["--callers", "many"], "must be a whole number"),
        (["--json", "/nowhere/x.json"], "/nowhere is not a directory"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--tls-key", "x"], "--tls-certificate and --tls-key are needed together"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["loadtest", *flags])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_missing_library_is_named_with_the_pip_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
    for name in [name for name in sys.modules if name.startswith("serving.loadtest")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["loadtest"]) == 1
    assert "hdrh.histogram is missing: install this package with its extra [loadtest]" in capsys.readouterr().err


def test_client_certificate_and_token_are_sent(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = Files(tmp_path)
    files.put(issue(authority), authority)
    tokens, token = tmp_path / "tokens.toml", tmp_path / "token"
    tokens.write_text(entry("tester"))
    token.write_text(TOKEN)
    tls = ["--tls-certificate", str(files.certificate), "--tls-key", str(files.key)]
    with service(*tls, "--tls-client-ca", str(files.client_ca), "--tokens", str(tokens)) as started:
        flags = ["--callers", "1", *tls, "--tls-ca", str(files.client_ca)]
        assert load(started.address, *flags, "--token-file", str(token)).returncode == 0
        ran = load(started.address, *flags)
    assert ran.returncode == 1
    assert "answers a first call with UNAUTHENTICATED: no valid token" in ran.stderr


@pytest.mark.parametrize("sending", [False, True], ids=["before it sends", "while it sends"])
def test_no_process_is_left_after_one_dies(service_: Service, sending: bool) -> None:
    flags = ["--callers", "2", "--processes", "2", "--seconds", "30"]
    command = [*DIGITS, "loadtest", "--address", service_.address, *flags]
    before = service_.scrape("digits_requests_total")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + TIMEOUT
        while len(children := senders(running.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        while sending and service_.scrape("digits_requests_total") < before + 100 and time.monotonic() < deadline:
            time.sleep(0.05)
        subprocess.run(["kill", "-9", str(children[0])], check=True)
        _, errors = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 1
    assert "a process of the test has died" in errors
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def senders(pid: int) -> list[int]:
    """Returns the sending processes of a load test, without the resource tracker of multiprocessing."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
