import asyncio
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.api.dispatch import Dispatcher
from serving.api.rpc import Method
from serving.call import Call
from serving.errors import (
    Code,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    PermissionDenied,
    RequestError,
    Stopping,
    Unauthenticated,
)
from serving.security.tokens import TokenAuthenticator
from serving.telemetry.metrics import Metrics
from tests.support.credentials import TOKEN, bearer, entry
from tests.support.metrics import value

TextMethod = Method[str, str]


def parse(encoded: bytes) -> str:
    if not encoded:
        raise InvalidRequest("there is no text")
    return encoded.decode()


async def work(text: str, call: Call) -> str:
    """Answers with the text in upper case, or ends as the text commands."""
    match text:
        case "wait":
            await asyncio.Event().wait()
        case "stop":
            raise Stopping("the server is stopping")
        case "break":
            raise RuntimeError("a secret of the server")
    return text.upper()


def refuse(encoded: bytes, error: RequestError) -> bytes:
    return f"{encoded!r} {error.code.name} {error}".encode()


UNARY = TextMethod("text.v1.Text", "Shout", "text.v1.ShoutRequest", parse, work, str.encode, "recognize")
STREAM = TextMethod(
    "text.v1.Text", "ShoutStream", "text.v1.ShoutRequest", parse, work, str.encode, "recognize", refuse=refuse
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def dispatcher(metrics: Metrics) -> Dispatcher:
    return Dispatcher(metrics, authenticator=None, tracing=None)


@pytest.fixture
def guarded(metrics: Metrics, tmp_path: Path) -> Iterator[Dispatcher]:
    """A dispatcher that asks for tokens; its only client may recognize."""
    (tmp_path / "tokens.toml").write_text(entry("sorter-7"))
    authenticator = TokenAuthenticator(tmp_path / "tokens.toml", metrics)
    yield Dispatcher(metrics, authenticator, tracing=None)
    authenticator.close()


def assert_counted(metrics: Metrics, code: str, reason: str, method: str = "Shout") -> None:
    """Asserts that one request ended with this code, for this reason, which is empty for a success."""
    assert value(metrics.registry, "digits_requests_total", method=method, code=code) == 1
    assert value(metrics.registry, "digits_requests_total") == 1
    assert value(metrics.registry, "digits_rejected_requests_total") == bool(reason)
    assert value(metrics.registry, "digits_rejected_requests_total", reason=reason) == bool(reason)
    assert value(metrics.registry, "digits_in_flight_requests") == 0


def test_added_methods_are_found_by_their_path(dispatcher: Dispatcher) -> None:
    dispatcher.add([UNARY, STREAM])
    assert dispatcher.methods == {"/text.v1.Text/Shout": UNARY, "/text.v1.Text/ShoutStream": STREAM}


async def test_a_request_is_parsed_answered_encoded_and_counted(dispatcher: Dispatcher, metrics: Metrics) -> None:
    assert await dispatcher.answer(UNARY, b"digit", Call()) == b"DIGIT"
    assert_counted(metrics, "OK", "")
    assert value(metrics.registry, "digits_request_seconds_count", method="Shout") == 1


async def test_an_invalid_request_is_counted_and_its_error_raised(dispatcher: Dispatcher, metrics: Metrics) -> None:
    with pytest.raises(InvalidRequest, match="there is no text"):
        await dispatcher.answer(UNARY, b"", Call())
    assert_counted(metrics, "INVALID_ARGUMENT", "invalid")


async def test_an_error_in_a_stream_is_counted_and_encoded_as_an_answer(dispatcher: Dispatcher, metrics: Metrics) -> None:
    assert await dispatcher.answer(STREAM, b"", Call()) == b"b'' INVALID_ARGUMENT there is no text"
    assert_counted(metrics, "INVALID_ARGUMENT", "invalid", "ShoutStream")


async def test_an_error_that_ends_the_stream_is_raised_instead(dispatcher: Dispatcher, metrics: Metrics) -> None:
    with pytest.raises(Stopping):
        await dispatcher.answer(STREAM, b"stop", Call())
    assert_counted(metrics, "UNAVAILABLE", "stopping", "ShoutStream")


async def test_an_internal_error_is_logged_and_hides_its_cause_from_the_caller(
    dispatcher: Dispatcher, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(Internal) as error:
        await dispatcher.answer(UNARY, b"break", Call())
    assert str(error.value) == "internal error"
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__
    assert "a secret of the server" in caplog.text
    assert_counted(metrics, "INTERNAL", "internal")


@pytest.mark.parametrize(
    ("seconds_left", "code", "reason"),
    [(math.inf, "CANCELLED", "cancelled"), (60, "CANCELLED", "cancelled"), (0, "DEADLINE_EXCEEDED", "deadline")],
)
async def test_a_cancelled_request_is_counted_as_late_only_at_its_deadline(
    dispatcher: Dispatcher, metrics: Metrics, seconds_left: float, code: str, reason: str
) -> None:
    request = asyncio.create_task(dispatcher.answer(UNARY, b"wait", Call(time.monotonic() + seconds_left)))
    await asyncio.sleep(0)
    assert value(metrics.registry, "digits_in_flight_requests") == 1
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert_counted(metrics, code, reason)


def test_an_unknown_client_is_refused_and_counted_before_any_message(guarded: Dispatcher, metrics: Metrics) -> None:
    with pytest.raises(Unauthenticated) as refused:
        guarded.admit("recognize", lambda: bearer("wrong"))
    guarded.refuse("Shout", refused.value, str)
    assert_counted(metrics, "UNAUTHENTICATED", "unauthenticated", "Shout")


def test_a_client_without_the_role_is_refused_and_counted(guarded: Dispatcher, metrics: Metrics) -> None:
    with pytest.raises(PermissionDenied) as refused:
        guarded.admit("admin", lambda: bearer(TOKEN))
    guarded.refuse("Forget", refused.value, str)
    assert_counted(metrics, "PERMISSION_DENIED", "permission_denied", "Forget")


def test_a_known_client_is_admitted_and_counted_only_when_answered(guarded: Dispatcher, metrics: Metrics) -> None:
    client = guarded.admit("recognize", lambda: bearer(TOKEN))
    assert client
    assert client.name == "sorter-7"
    assert value(metrics.registry, "digits_requests_total") == 0


def test_a_server_without_tokens_admits_everyone(dispatcher: Dispatcher) -> None:
    assert dispatcher.admit("recognize", lambda: None) is None


async def test_a_call_is_logged_at_level_debug_with_its_outcome(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "serving.api.dispatch"):
        await dispatcher.answer(UNARY, b"digit", Call(peer=lambda: "ipv4:127.0.0.1:7"))
        with pytest.raises(InvalidRequest):
            await dispatcher.answer(UNARY, b"", Call())
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("call method=Shout code=OK images=0 ")
    assert "peer=ipv4:127.0.0.1:7" in first
    assert second.startswith("call method=Shout code=INVALID_ARGUMENT ")


def test_a_refusal_outside_a_request_is_counted_once(dispatcher: Dispatcher, metrics: Metrics) -> None:
    dispatcher.count_refusal("ShoutStream", DeadlineExceeded("late"))
    assert DeadlineExceeded.code is Code.DEADLINE_EXCEEDED
    assert_counted(metrics, "DEADLINE_EXCEEDED", "deadline", "ShoutStream")
