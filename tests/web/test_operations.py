import gzip
import http.client
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from serving.ports import BACKLOG, PortTaken
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
    assert get(server, "/readyz")[::2] == (503, b"the event loop has not turned for 2 s\n")


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


def probes_are_answered(server: HttpServer, count: int = 20) -> bool:
    return all(get(server, path)[0] == 200 for _ in range(count) for path in ("/healthz", "/readyz"))


@pytest.mark.parametrize("beginning", [b"", b"G", b"GET /metrics HTTP/1.1\r\nHost: here\r\n"])
def test_probes_are_answered_beside_a_thousand_clients_that_hang(server: HttpServer, beginning: bytes) -> None:
    hanging = []
    for _ in range(1000):
        hanging.append(socket.create_connection(("127.0.0.1", server.port), TIMEOUT))
        hanging[-1].sendall(beginning)
    assert probes_are_answered(server)
    assert hanging[0].recv(1) == b"", "beyond the limit, the oldest should be disconnected"
    assert get(server, "/metrics")[0] == 200
    for connection in hanging:
        connection.close()


def test_probes_are_answered_while_clients_come_back_as_fast_as_they_can(server: HttpServer) -> None:
    over = threading.Event()

    def harass() -> None:
        while not over.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as connection:
                connection.sendall(b"GET /healthz HTTP/1.0\r\n")
                over.wait(0.05)

    threads = [threading.Thread(target=harass, daemon=True) for _ in range(100)]
    for thread in threads:
        thread.start()
    assert probes_are_answered(server)
    over.set()
    for thread in threads:
        thread.join(TIMEOUT)


def test_clients_that_take_no_answer_do_not_keep_probes_or_scrapes_from_theirs() -> None:
    class Large(Collector):
        def collect(self) -> Iterator[Metric]:
            metric = Metric("digits_large", "x" * 1_000_000, "gauge")
            metric.add_sample("digits_large", {}, 1)
            yield metric

    server = HttpServer("127.0.0.1", 0, Large(), lost=str, unready=str)
    taking_none = []
    for _ in range(200):
        taking_none.append(socket.create_connection(("127.0.0.1", server.port), TIMEOUT))
        taking_none[-1].sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert probes_are_answered(server)
    assert len(get(server, "/metrics")[2]) > 1_000_000
    for connection in taking_none:
        connection.close()
    server.close()


def test_a_slow_scrape_delays_no_probe_and_is_shared_by_all_who_wait() -> None:
    collections = 0
    going = threading.Event()

    class Slow(Collector):
        def collect(self) -> Iterator[Metric]:
            nonlocal collections
            collections += 1
            going.wait(TIMEOUT)
            return iter(())

    collected = Slow()
    going.set()
    server = HttpServer("127.0.0.1", 0, collected, lost=str, unready=str)
    going.clear()
    collections = 0
    scrapers = [threading.Thread(target=get, args=(server, "/metrics"), daemon=True) for _ in range(16)]
    for scraper in scrapers:
        scraper.start()
    assert probes_are_answered(server)
    going.set()
    for scraper in scrapers:
        scraper.join(TIMEOUT)
    assert collections <= 2, "all who come during a collection should share the next"
    server.close()


def test_clients_that_send_a_byte_now_and_then_are_cut_off_in_the_end(server: HttpServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as dribbling:
        dribbling.settimeout(0.5)
        for _ in range(4 * TIMEOUT):
            try:
                dribbling.send(b"G")
                ended = dribbling.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True
            assert ended, "it should be cut off, without an answer"
            break
        else:
            pytest.fail("it should be cut off")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(5000)) + b"\r\n", 431),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /healthz\r\n", 400),
        (b"GET //[ HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\n", 400),
        (b"CONNECT here:1 HTTP/1.1\r\n\r\n", 501),
        (b"GET http://here/healthz HTTP/1.1\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.0\n\n", 200),
        (b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=a.b;escaping=;q=x\r\n\r\n", 200),
    ],
)
def test_any_request_gets_an_answer_of_http(server: HttpServer, request_: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as connection:
        connection.sendall(request_)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_a_client_cannot_ask_for_more_than_a_handful_of_forms(server: HttpServer) -> None:
    form = server._http._pages["/metrics"]._page.form
    kinds = ("application/openmetrics-text", "text/plain")
    asked = [f"{kind}; version=1.0.{n}; escaping={n}" for kind in kinds for n in range(500)]
    asked += [f"{kind}; version={'0' * n}1.0.0" for kind in kinds for n in range(500)]
    assert len({form({"accept": accept, "accept-encoding": f"gzip;q=0.{n}"}) for n, accept in enumerate(asked)}) < 10
    for accept in asked[::300]:
        status, headers, body = get(server, "/metrics", Accept=accept)
        assert status == 200
        assert b"digits_seen_total 3.0" in body
        assert "version=1.0.3" not in headers["Content-Type"]


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


def test_its_socket_keeps_the_backlog_of_the_service(server: HttpServer) -> None:
    get(server, "/healthz")  # it answers, so it listens for good
    (listening,) = server._http._listening
    information = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    assert struct.unpack_from("I", information, 28) == (BACKLOG,), "tcpi_sacked of a listening socket is its backlog"


def test_it_listens_on_ipv6_and_names_a_taken_port(server: HttpServer) -> None:
    with pytest.raises(PortTaken, match=f"cannot listen on 127.0.0.1:{server.port} for metrics: Address already in use"):
        HttpServer("127.0.0.1", server.port, CollectorRegistry(), lost=str, unready=str)
    other = HttpServer("::1", 0, CollectorRegistry(), lost=str, unready=str)
    with urllib.request.urlopen(f"http://[::1]:{other.port}/healthz", timeout=TIMEOUT) as answer:
        assert answer.read() == b"alive\n"
    other.close()
