import gzip
import http.client
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from serving.ports import PortTaken
from serving.web.operations import HttpServer

TIMEOUT = 20  # seconds


class State:
    """The health that the server under test reports: the reasons, empty when all is well."""

    reason = ""
    hang = ""


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def server(state: State) -> Iterator[HttpServer]:
    registry = CollectorRegistry()
    Counter("digits_seen", "What was seen.", registry=registry).inc(3)
    started = HttpServer("127.0.0.1", 0, registry, lost=lambda: state.hang, unready=lambda: state.reason)
    yield started
    started.close()


def get(server: HttpServer, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def lives_again(server: HttpServer) -> bool:
    """Probes until a slot is free; returns true if the probe is answered with 200."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        with suppress(ConnectionError):
            return get(server, "/healthz")[0] == 200
    return False


def test_metrics_come_in_the_form_that_is_asked_for(server: HttpServer) -> None:
    status, headers, body = get(server, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    samples = [sample for family in text_string_to_metric_families(body.decode()) for sample in family.samples]
    assert [(sample.name, sample.value) for sample in samples] == [("digits_seen_total", 3.0)]
    _, headers, body = get(server, "/metrics?", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    _, headers, body = get(server, "/metrics", Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert b"digits_seen_total 3.0" in gzip.decompress(body)


def test_readiness_has_its_reason_and_is_apart_from_liveness(server: HttpServer, state: State) -> None:
    assert get(server, "/readyz")[::2] == (200, b"ready\n")
    state.reason = "draining"
    assert get(server, "/readyz")[::2] == (503, b"draining\n")
    assert get(server, "/healthz")[::2] == (200, b"alive\n")
    assert get(server, "/readyz", "HEAD")[::2] == (503, b"")


def test_a_process_that_stands_still_is_not_alive(server: HttpServer, state: State) -> None:
    state.hang = "the event loop has not turned for 2 s"
    assert get(server, "/healthz")[::2] == (503, b"the event loop has not turned for 2 s\n")
    assert get(server, "/readyz")[::2] == (200, b"ready\n")


def test_unknown_paths_are_404_and_garbage_does_no_harm(server: HttpServer) -> None:
    assert get(server, "/")[0] == 404
    assert get(server, "/metrics/../metrics")[0] == 404
    assert get(server, "/metrics", "POST")[0] == 501
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as garbage:
        garbage.sendall(bytes(range(256)) * 100 + b"\r\n\r\n")
        while garbage.recv(4096):
            pass
    assert get(server, "/healthz")[0] == 200


def test_clients_that_hang_block_no_other(server: HttpServer) -> None:
    hanging = []
    for beginning in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: here\r\n") * 10:
        hanging.append(socket.create_connection(("127.0.0.1", server.port), TIMEOUT))
        hanging[-1].sendall(beginning)
    assert get(server, "/metrics")[0] == 200
    for connection in hanging:
        connection.close()


def test_hanging_clients_by_the_hundred_do_not_each_get_a_thread(server: HttpServer) -> None:
    hanging = [socket.create_connection(("127.0.0.1", server.port), TIMEOUT) for _ in range(200)]
    hanging[-1].settimeout(4)  # less than it has patience for a client that has a thread
    assert hanging[-1].recv(1) == b"", "beyond its limit it should hang up at once"
    for connection in hanging:
        connection.close()
    assert lives_again(server)


def test_clients_that_send_a_byte_now_and_then_are_cut_off_in_the_end(server: HttpServer) -> None:
    dribbling = [socket.create_connection(("127.0.0.1", server.port), TIMEOUT) for _ in range(100)]
    over = threading.Event()

    def dribble() -> None:
        while not over.wait(0.5):
            for connection in dribbling:
                with suppress(OSError):  # it is cut off
                    connection.send(b"G")

    threading.Thread(target=dribble, daemon=True).start()
    with pytest.raises(ConnectionError):
        get(server, "/healthz")  # all places are taken
    for connection in dribbling:
        with suppress(ConnectionError):
            assert connection.recv(1) == b"", "it should be cut off, without an answer"
    over.set()
    assert lives_again(server)
    for connection in dribbling:
        connection.close()


def test_a_metric_that_cannot_be_collected_is_a_500_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Collector):
        def collect(self) -> Iterator[Metric]:
            raise RuntimeError("a secret of ours")

    broken = HttpServer("127.0.0.1", 0, Broken(), lost=str, unready=str)
    status, _, body = get(broken, "/metrics")
    broken.close()
    assert (status, body) == (500, b"the metrics could not be collected; the log says why\n")
    assert "a secret of ours" in caplog.text


def test_it_listens_on_ipv6_and_names_a_taken_port(server: HttpServer) -> None:
    with pytest.raises(PortTaken, match=f"cannot listen on 127.0.0.1:{server.port} for metrics: Address already in use"):
        HttpServer("127.0.0.1", server.port, CollectorRegistry(), lost=str, unready=str)
    other = HttpServer("::1", 0, CollectorRegistry(), lost=str, unready=str)
    with urllib.request.urlopen(f"http://[::1]:{other.port}/healthz", timeout=TIMEOUT) as answer:
        assert answer.read() == b"alive\n"
    other.close()
