from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from serving.client import DigitClient
from serving.client.truths import Truth, truth_request
from serving.samples.draw import draw
from tests.support.calls import TIMEOUT
from tests.support.service import Service, service

SEVENS = np.stack([draw(7)] * 3)


@pytest.fixture(scope="module")
def server() -> Iterator[Service]:
    with service("--workers", "1") as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Service) -> Iterator[DigitClient]:
    """A client of a real server."""
    with DigitClient(server.address, TIMEOUT) as connected:
        yield connected


def test_truth_is_counted_by_the_stored_id(server: Service, client: DigitClient) -> None:
    one, many, field = client.recognize(SEVENS[0]), client.recognize_batch(SEVENS), client.read_field(SEVENS)
    by_id: list[Truth] = [
        (one.recognition_id, 7),
        (many[0].recognition_id, "7"),
        (many[2].recognition_id, 2, np.int64(1)),
        (field.recognition_id, "777"),
    ]
    assert client.report_truth(by_id, "keying") == 4
    assert client.report_truth([(one, 7), (many[0], 7), (many[2], 1), (field, "777")], "keying") == 0
    assert client.report_truth([(many[1], 7)], "keying") == 1
    assert server.scrape("digits_truth_total", unit="digit", outcome="wrong", source="keying") == 1


def test_an_id_that_the_server_never_gave_is_refused(client: DigitClient) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        client.report_truth([("nonsense", 7)], "keying")
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


WRONG_TRUTHS: list[tuple[Any, type[Exception], str]] = [
    ("ID", TypeError, "truths has type str"),
    (7, TypeError, "truths has type int"),
    (["ID"], TypeError, r"truths\[0\] has type str, expected \(answer, value\)"),
    ([("ID", 7), ("ID",)], TypeError, r"truths\[1\] has type tuple and 1 elements, expected"),
    ([(b"ID", 7)], TypeError, r"truths\[0\] starts with type bytes, expected .*\(recognition_id, index, value\)"),
    ([(None, 0, 7)], TypeError, "starts with type NoneType"),
    ([("ID", "0", 7)], TypeError, "an index of type str, expected an int"),
    ([("ID", True, 7)], TypeError, "an index of type bool"),
    ([("ID", -1, 7)], ValueError, "the index -1"),
    ([("ID", 1 << 32, 7)], ValueError, "the index 4294967296"),
    ([("ID", 7.0)], TypeError, "a value of type float, expected a digit"),
    ([("ID", None)], TypeError, "a value of type NoneType"),
]


@pytest.mark.parametrize(("truths", "kind", "reason"), WRONG_TRUTHS)
def test_a_wrong_truth_is_explained(truths: Any, kind: type[Exception], reason: str) -> None:
    with pytest.raises(kind, match=reason):
        truth_request(truths, "keying")


def test_an_unknown_source_is_explained() -> None:
    with pytest.raises(ValueError, match="source is 'hearsay', expected one of keying, audit, replay"):
        truth_request([], "hearsay")
