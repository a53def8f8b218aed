import itertools
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from serving.answers import decision
from serving.client import Decision, DigitClient, Refusal, ResourceExhausted
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.samples.draw import draw
from tests.client.test_balancing import Refusing, served
from tests.support.calls import TIMEOUT
from tests.support.credentials import TOKEN, entry
from tests.support.service import service

SEVEN = draw(7)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DigitClient]:
    """A client that may send one image a second to a real server."""
    tokens: Path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens.write_text(entry("sorter", more="images_per_second = 1"))
    with (
        service("--workers", "1", "--tokens", str(tokens)) as server,
        DigitClient(server.address, TIMEOUT, token=TOKEN) as connected,
    ):
        yield connected


def test_a_refused_call_keeps_the_seconds_to_wait(client: DigitClient) -> None:
    with pytest.raises(ResourceExhausted, match="retry after") as refusal:  # noqa: PT012 - the first may be answered
        for _ in range(5):
            client.recognize(SEVEN)
    assert refusal.value.retry_after is not None
    assert 0 < refusal.value.retry_after <= 1
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusal.value.details() in str(refusal.value)
    assert isinstance(refusal.value, grpc.RpcError)


def test_a_refused_call_keeps_all_that_grpc_knows_of_it() -> None:
    with served(Refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, ("reason", "full"))) as client:
        for call in (lambda: client.recognize(SEVEN), lambda: next(client.recognize_stream([SEVEN]))):
            with pytest.raises(ResourceExhausted) as refusal:
                call()
            error = refusal.value
            assert isinstance(error, grpc.Call)
            assert ("reason", "full") in [tuple(pair) for pair in error.trailing_metadata()]
            assert list(error.initial_metadata() or ()) == []
            assert "RESOURCE_EXHAUSTED" in error.debug_error_string()
            assert not error.is_active()
            assert not error.add_callback(lambda: None)
            assert error.time_remaining() is None
            assert not error.cancel()
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_refused_image_of_a_stream_keeps_the_seconds_to_wait(client: DigitClient) -> None:
    refusals = [one for _, one in client.recognize_stream(itertools.repeat(SEVEN, 5)) if isinstance(one, Refusal)]
    assert refusals
    for refusal in refusals:
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal.retry_after is not None
        assert 0 < refusal.retry_after <= 10


@pytest.mark.parametrize(("milliseconds", "seconds"), [("1500", 1.5), ("-1", None), ("soon", None), (None, None)])
def test_retry_after_is_in_seconds_or_none(milliseconds: str | None, seconds: float | None) -> None:
    metadata = [("grpc-retry-pushback-ms", milliseconds)] if milliseconds else []
    with served(Refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, *metadata)) as client:
        with pytest.raises(ResourceExhausted) as refusal:
            client.recognize(SEVEN)
        assert refusal.value.retry_after == seconds
        with pytest.raises(ResourceExhausted) as refusal:
            next(client.recognize_stream([SEVEN]))
        assert refusal.value.retry_after == seconds


def test_the_clients_decisions_are_those_of_the_proto_and_the_server() -> None:
    numbers = {name.removeprefix("DECISION_"): number for name, number in pb.Decision.items()}
    assert {one.name: one.value for one in Decision} == numbers
    assert {one.name: one.value for one in decision.Decision} == numbers
