import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.client import DigitClient, Recognition, channel_credentials
from serving.samples.draw import draw
from tests.support.calls import TIMEOUT
from tests.support.credentials import TOKEN, entry
from tests.support.service import Service, service

SEVEN = draw(7)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server that requires a token."""
    tokens: Path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens.write_text(entry("sorter"))
    with service("--workers", "1", "--tokens", str(tokens)) as started:
        yield started


WRONG_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"address": ""}, ValueError, "address is empty, expected host:port"),
    ({"address": " "}, ValueError, "address is empty"),
    ({"address": 8001}, TypeError, "address has type int, expected str"),
    ({"timeout_seconds": 0}, ValueError, "timeout_seconds is 0, expected a finite number of seconds above 0"),
    ({"timeout_seconds": -1.0}, ValueError, "timeout_seconds is -1.0"),
    ({"timeout_seconds": math.inf}, ValueError, "timeout_seconds is inf"),
    ({"timeout_seconds": math.nan}, ValueError, "timeout_seconds is nan"),
    ({"timeout_seconds": "5"}, TypeError, "timeout_seconds has type str, expected a number"),
    ({"timeout_seconds": None}, TypeError, "timeout_seconds has type NoneType"),
    ({"timeout_seconds": True}, TypeError, "timeout_seconds has type bool"),
    ({"credentials": "ca.pem"}, TypeError, r"credentials has type str, .*channel_credentials\(ca_file\)"),
    ({"token": b"secret"}, TypeError, r"token has type bytes, expected str or None; decode it: token.decode\(\)"),
    ({"token": Path("secret")}, TypeError, "token has type PosixPath, expected str or None$"),
    ({"token": " \n"}, ValueError, "token is empty"),
    ({"token": "secret\nsecret"}, ValueError, "token holds several lines"),
    ({"token": "sécret"}, ValueError, "expected one line of printable ASCII"),
    ({"token": "secret\0"}, ValueError, "expected one line of printable ASCII"),
]


@pytest.mark.parametrize(("arguments", "kind", "reason"), WRONG_ARGUMENTS)
def test_a_wrong_argument_of_the_client_is_explained(arguments: dict[str, Any], kind: type[Exception], reason: str) -> None:
    with pytest.raises(kind, match=reason) as error:
        DigitClient(**arguments)
    assert "cret" not in str(error.value), "a message never shows the token"


def test_the_newline_after_a_token_is_removed(server: Service) -> None:
    with DigitClient(server.address, np.float32(TIMEOUT), token=f"{TOKEN}\n") as client:  # type: ignore[arg-type]
        assert client.recognize(SEVEN).digit == 7
        assert [type(one) for _, one in client.recognize_stream([SEVEN])] == [Recognition]


CALLS: list[Callable[..., Any]] = [
    lambda client, **options: client.recognize(SEVEN, **options),
    lambda client, **options: client.recognize_batch(SEVEN[None], **options),
    lambda client, **options: client.read_field(SEVEN[None], **options),
    lambda client, **options: list(client.recognize_stream([SEVEN], **options)),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_option_of_a_call_is_explained(call: Callable[..., Any]) -> None:
    with DigitClient(timeout_seconds=TIMEOUT) as client:
        for name in ("model", "key"):
            with pytest.raises(TypeError, match=f"{name} has type int, expected str"):
                call(client, **{name: 7})
        with pytest.raises(TypeError, match="target_error_rate has type str, expected a number"):
            call(client, target_error_rate="0.01")
        with pytest.raises(TypeError, match="lexicon has type bytes, expected str"):
            client.read_field(SEVEN[None], lexicon=b"towns")  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [*CALLS, lambda client: client.report_truth([("ID", 7)], "keying")])
def test_a_call_on_a_closed_client_is_explained(call: Callable[..., Any]) -> None:
    client = DigitClient(timeout_seconds=TIMEOUT)
    client.close()
    client.close()
    with pytest.raises(ValueError, match="the client is closed, create a new DigitClient"):
        call(client)


def test_credentials_of_grpc_are_accepted() -> None:
    DigitClient(credentials=grpc.ssl_channel_credentials()).close()


def test_paths_of_credentials_may_be_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ca\.pem can't be read"):
        channel_credentials(str(tmp_path / "ca.pem"))
