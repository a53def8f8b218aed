import fcntl
import json
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.client import DigitClient
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.samples.draw import draw
from serving.settings import BUNDLED
from serving.telemetry.log_text import clean
from tests.support.calls import TIMEOUT
from tests.support.service import launch, service


def logged(form: str, level: str, code: str) -> list[str]:
    """Runs a program that logs, and returns the lines of its log."""
    program = (
        f"import logging\nfrom serving.telemetry.logs import configure, log_event\nconfigure({form!r}, {level!r})\n{code}"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert ran.stdout == ""
    return ran.stderr.splitlines()


def objects(code: str, level: str = "info") -> list[dict[str, Any]]:
    """Runs a program that logs as JSON, and parses the lines of its log."""
    return [json.loads(line) for line in logged("json", level, code)]


def test_an_event_is_one_json_object_with_its_fields() -> None:
    (line,) = objects(
        "log = logging.getLogger('serving.process.server')\n"
        "log_event(log, logging.INFO, 'model_loaded', 'loaded 100 %\\nnow', model='digits', name='x', images=3)"
    )
    assert abs(datetime.fromisoformat(line.pop("time")) - datetime.now(UTC)) < timedelta(minutes=1)
    assert line.pop("pid") > 0
    assert line == {
        "level": "info",
        "event": "model_loaded",
        "logger": "serving.process.server",
        "message": "loaded 100 %\nnow",
        "model": "digits",
        "name": "x",
        "images": 3,
    }


def test_an_exception_is_one_field() -> None:
    (line,) = objects(
        "try:\n    1 / 0\n"
        "except ZeroDivisionError:\n    log_event(logging.getLogger('serving'), 40, 'call_failed', 'oh', exc_info=True)"
    )
    assert (line["event"], line["message"]) == ("call_failed", "oh")
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ZeroDivisionError: division by zero")


def test_library_lines_warnings_and_crashes_have_the_same_form() -> None:
    lines = objects(
        "import asyncio, threading, warnings\n"
        "async def fail():\n    1 / 0\n"
        "async def forget():\n"
        "    asyncio.get_running_loop().call_soon(lambda: 1 / 0)\n    await asyncio.sleep(0)\n"
        "asyncio.run(forget())\n"
        "logging.getLogger('grpc._cython.cygrpc').error('unexpected %s', 'thing')\n"
        "warnings.warn('old')\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()\n"
        "1 / 0",
        level="debug",
    )
    seen = [(line["logger"], line["event"], line["level"], "exception" in line) for line in lines]
    assert seen == [
        ("asyncio", "log", "error", True),
        ("grpc._cython.cygrpc", "log", "error", False),
        ("py.warnings", "log", "warning", False),
        ("serving", "crashed", "critical", True),
        ("serving", "crashed", "critical", True),
    ]
    assert lines[1]["message"] == "unexpected thing"


def test_a_text_line_has_time_level_and_message() -> None:
    (line,) = logged("text", "info", "log_event(logging.getLogger('serving'), 20, 'started', '100 % there', model='digits')")
    assert line[:4].isdecimal()
    assert line.endswith(" INFO 100 % there")


CONTEXT = """
import asyncio
from serving.telemetry import logs
log = logging.getLogger('serving')
async def answer(trace, done):
    logs.trace_ids.set({'trace_id': trace, 'span_id': trace * 2})
    await asyncio.sleep(0)  # lets the other call set its own ids
    logging.getLogger('asyncio').warning('slow')
    log_event(log, 20, 'framed', f'framed for {trace}', images=1)
    log_event(log, 20, 'call', 'call method=x', method='x')
    try:
        1 / 0
    except ZeroDivisionError:
        log_event(log, 40, 'call_failed', 'failed', exc_info=True)
async def both():
    await asyncio.gather(asyncio.create_task(answer('a', 1)), asyncio.create_task(answer('b', 2)))
    log_event(log, 20, 'stopped', 'stopped')
asyncio.run(both())
"""


def test_json_lines_of_a_traced_call_carry_its_ids() -> None:
    lines = objects(CONTEXT)
    for trace in ("a", "b"):
        events = [line["event"] for line in lines if (line.get("trace_id"), line.get("span_id")) == (trace, trace * 2)]
        assert events == ["log", "framed", "call", "call_failed"]
    assert "trace_id" not in lines[-1], "no call is being answered"


def test_text_lines_of_a_traced_call_carry_its_ids_once() -> None:
    lines = logged("text", "info", CONTEXT)
    messages = [line.partition(" INFO ")[2] for line in lines]
    for trace in ("a", "b"):
        ids = f" trace_id={trace} span_id={trace * 2}"
        assert {f"framed for {trace}{ids}", f"call method=x{ids}"} <= {*messages}
        (failure,) = (number for number, line in enumerate(lines) if line.endswith(f" ERROR failed{ids}"))
        assert lines[failure + 1].startswith("Traceback "), "it follows the line with the ids"
    assert messages[-1] == "stopped", "no call is being answered"


def test_lines_below_the_level_and_library_debug_lines_are_dropped() -> None:
    code = (
        "for name in ('serving.transport.grpc_front', 'asyncio'):\n"
        "  log = logging.getLogger(name)\n  log.debug('a'); log.warning('b')"
    )
    assert [line["message"] for line in objects(code, "debug")] == ["a", "b", "b"]
    assert [line["message"] for line in objects(code, "warning")] == ["b", "b"]
    assert objects(code, "error") == []


def test_lines_of_opentelemetry_are_rate_limited() -> None:
    code = (
        "for _ in range(1000):\n    logging.getLogger('opentelemetry.sdk').warning('no collector')\n"
        "logging.getLogger('opentelemetrics').warning('x')"
    )
    assert [line["message"] for line in objects(code)] == ["no collector", "x"]


def serve_one_digit(*flags: str) -> list[dict[str, Any]]:
    """Returns the log of a server that recognizes a 7, refuses an invalid request, and is stopped."""
    with launch("--workers", "1", "--log-format", "json", "--drain-seconds", "0", *flags) as process:
        try:
            assert process.stderr is not None
            lines: list[dict[str, Any]] = []
            while not lines or lines[-1]["event"] != "started":
                lines.append(json.loads(process.stderr.readline()))
            address = lines[-1]["grpc_address"]
            with DigitClient(address, TIMEOUT) as client:
                assert client.recognize(draw(7)).digit == 7
            with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError):
                DigitServiceStub(channel).RecognizeBatch(pb.RecognizeBatchRequest(), timeout=TIMEOUT)
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=TIMEOUT)
            return lines + [json.loads(line) for line in rest.splitlines()]
        finally:
            process.kill()


def test_a_server_logs_its_life_as_events() -> None:
    lines = serve_one_digit()
    assert {line["model"] for line in lines if line["event"] == "model_loaded"} == {"digits", "digits-flagship"}
    events = {line["event"]: line for line in lines if line.get("model") in (None, "digits")}
    assert list(events) == ["model_loading", "model_loaded", "model_role", "started", "draining", "stopped"]
    assert events["model_loaded"]["model"] == "digits"
    assert events["model_loaded"]["test_accuracy"] > 0.99
    assert events["started"]["version"] == events["model_loaded"]["version"]
    assert events["started"]["metrics_address"].startswith("127.0.0.1:")
    assert (events["draining"]["signal"], events["draining"]["drain_seconds"]) == ("SIGTERM", 0.0)
    assert events["stopped"]["calls"] == {"OK": 1, "INVALID_ARGUMENT": 1}
    assert len({line["pid"] for line in events.values()}) == 1


def test_at_debug_each_call_is_a_line_without_its_image() -> None:
    read, refused = (line for line in serve_one_digit("--log-level", "debug") if line["event"] == "call")
    assert (read["method"], read["code"], read["images"], read["model"]) == ("Recognize", "OK", 1, "digits")
    assert read["version"].isdecimal()
    assert read["peer"].startswith("ipv4:127.0.0.1:")
    assert 0 < read["duration_ms"] < TIMEOUT * 1000
    assert (refused["method"], refused["code"]) == ("RecognizeBatch", "INVALID_ARGUMENT")
    assert max(len(str(value)) for value in read.values()) < 200
    assert not {"trace_id", "span_id"} & read.keys(), "nothing is traced"


def test_a_failed_start_is_an_event(tmp_path: Path) -> None:
    with launch("--log-format", "json", "--models", str(tmp_path), DIGITS_DRAIN_SECOND="1") as process:
        _, log = process.communicate(timeout=TIMEOUT)
    warning, error = [json.loads(line) for line in log.splitlines()]
    assert (warning["event"], warning["level"]) == ("unknown_variables", "warning")
    assert "DIGITS_DRAIN_SECOND; did you mean DIGITS_DRAIN_SECONDS?" in warning["message"]
    assert (process.returncode, error["event"], error["level"]) == (1, "not_started", "critical")
    assert f"no model in {tmp_path}" in error["message"]
    assert "exception" not in error


def test_a_refused_model_is_an_event_with_its_reason(tmp_path: Path) -> None:
    directory = tmp_path / "digits"
    directory.mkdir()
    version = next((BUNDLED / "digits").iterdir())
    (directory / version.name).symlink_to(version)
    (directory / "99999999999999").mkdir()
    (directory / "99999999999999" / "model.onnx").write_bytes(b"no model")
    (refused,) = (line for line in serve_one_digit("--models", str(tmp_path)) if line["event"] == "model_refused")
    assert (refused["model"], refused["version"], refused["reason"]) == ("digits", "99999999999999", "unreadable")


def test_a_model_without_a_certified_threshold_is_an_event() -> None:
    lines = serve_one_digit("--target-error-rate", "0.0001", "--workers", "1")
    warned = [line for line in lines if line["event"] == "model_not_certified"]
    assert {line["model"] for line in warned} == {"digits", "digits-flagship"}
    assert all(
        "has no certified threshold for an error rate of 0.0001: it accepts no digit" in line["message"] for line in warned
    )


HOSTILE = "a\x1b[31m\x85b\u2028c\u202ed\u200be\rf\x00g\ud800h\n2026-11-30 INFO forged"
ESCAPED = r"a\x1b[31m\x85b\u2028c\u202ed\u200be\rf\x00g\ud800h"


def test_a_text_line_shows_control_characters_escaped() -> None:
    (line,) = logged("text", "info", f"log_event(logging.getLogger('serving'), 20, 'x', {HOSTILE!a})")
    assert line.endswith(f" INFO {ESCAPED}" + r"\n2026-11-30 INFO forged")


def test_json_strings_hold_no_control_characters_but_line_breaks() -> None:
    (line,) = objects(f"log_event(logging.getLogger('serving'), 20, 'x', {HOSTILE!a}, model={HOSTILE!a})")
    assert line["message"] == line["model"] == ESCAPED + "\n2026-11-30 INFO forged"


@pytest.mark.parametrize("length", [3, 2_000, 1_000_000])
def test_a_message_that_grows_when_it_is_escaped_is_shortened_afterwards(length: int) -> None:
    text = clean("\U000e0001" * length, one_line=True)
    assert text.isprintable()
    assert len(text) <= 8_000
    assert text.startswith(r"\U000e0001\U000e0001")
    assert text.endswith(r"\U000e0001")
    assert (r" ...(" in text) == (length > 800)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_long_message_is_shortened(form: str) -> None:
    (line,) = logged(form, "info", "log_event(logging.getLogger('serving'), 20, 'x', 'x' * 1_000_000)")
    assert len(line) < 9_000
    assert "...(992040 characters)..." in line


def test_the_text_of_an_exception_forges_no_line() -> None:
    lines = logged(
        "text",
        "info",
        f"try:\n    raise ValueError({HOSTILE!a})\n"
        "except ValueError:\n    log_event(logging.getLogger('serving'), 40, 'x', 'oh', exc_info=True)",
    )
    assert lines[1].startswith("Traceback ")
    assert lines[-2:] == [f"  ValueError: {ESCAPED}", "  2026-11-30 INFO forged"]


def test_a_line_with_wrong_arguments_is_dropped_and_reported() -> None:
    program = (
        "import logging, sys\nfrom serving.telemetry.logs import configure\nconfigure('json', 'info')\n"
        "logging.getLogger('serving').error('%d', 'x')\nlogging.getLogger('serving').error('next')\nsys.stdin.readline()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], text=True, stdin=pipe, stderr=pipe) as process:
        assert process.stderr is not None
        limit = threading.Timer(TIMEOUT, process.kill)
        limit.start()
        lines = [json.loads(process.stderr.readline() or "{}") for _ in range(2)]
        limit.cancel()
        _, rest = process.communicate("end\n", timeout=TIMEOUT)
    assert [(line.get("event"), line.get("lines")) for line in lines] == [("log", None), ("log_lines_dropped", 1)]
    assert lines[0]["message"] == "next"
    assert rest == ""


def test_a_log_that_nobody_reads_stops_nothing_and_its_lost_lines_are_counted() -> None:
    program = (
        "import logging\nfrom serving.telemetry.logs import configure, count_dropped_lines, log_event\n"
        "configure('text', 'info')\nlost = []\ncount_dropped_lines(lambda: lost.append(1))\n"
        "for number in range(2000): log_event(logging.getLogger('serving'), 20, 'x', 'x' * 5000)\n"
        "print(len(lost), flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lost = int(process.stdout.readline())
        assert 1000 < lost < 2000
        process.wait(TIMEOUT)
        assert process.returncode == 0
        assert len(process.stderr.read().splitlines()) < 2000 - lost


def test_a_log_that_is_read_again_says_how_many_lines_are_missing() -> None:
    program = (
        "import logging, sys\nfrom serving.telemetry.logs import configure, log_event\nconfigure('json', 'info')\n"
        "for number in range(2000): log_event(logging.getLogger('serving'), 20, 'x', 'x' * 5000)\n"
        "print('full', flush=True)\nsys.stdin.readline()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], text=True, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "full\n"
        _, log = process.communicate("go on\n", timeout=TIMEOUT)
    lines = [json.loads(line) for line in log.splitlines()]
    lost = sum(line["lines"] for line in lines if line["event"] == "log_lines_dropped")
    assert lost + sum(line["event"] == "x" for line in lines) == 2000


def test_a_service_whose_log_nobody_reads_answers_and_stops() -> None:
    with service("--workers", "1", "--log-level", "debug", "--drain-seconds", "0") as served:
        assert served.process.stderr is not None
        fcntl.fcntl(served.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        with DigitClient(served.address, timeout_seconds=TIMEOUT) as client:
            for _ in range(200):
                client.recognize(draw(7))
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(TIMEOUT) == 0
