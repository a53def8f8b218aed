import select
import socket
import socketserver
import threading
from collections.abc import Iterator

import grpc
import pytest

from serving.client import DigitClient, ProxyUnavailable
from serving.client.proxy import describe_proxy
from serving.samples.draw import draw
from tests.client.test_balancing import Refusing, served
from tests.support.calls import TIMEOUT
from tests.support.service import free_ports

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("address", "exceptions", "named"),
    [
        ("digits.example:8001", "", "digits.example"),
        ("dns:///digits.example:8001", "other.example", "digits.example"),
        ("dns://10.0.0.1/digits.example:8001", ".example", None),
        ("ipv4:10.0.0.1:8001,10.0.0.2:8001", "192.168.0.0/16", "10.0.0.1"),
        ("10.1.2.3:8001", "localhost, 10.0.0.0/8", None),
        ("[::1]:8001", "", "::1"),
        ("[::1]:8001", "::1", None),
        ("unix:/run/digits", "", None),
        ("digits.example", "", "digits.example"),
    ],
)
def test_the_proxy_in_the_way_is_described(
    monkeypatch: pytest.MonkeyPatch, address: str, exceptions: str, named: str | None
) -> None:
    assert describe_proxy(address) == ""
    monkeypatch.setenv("http_proxy", "http://user:password@proxy.example:3128")
    monkeypatch.setenv("no_proxy", exceptions)
    described = describe_proxy(address)
    if named is None:
        assert described == ""
    else:
        assert "http_proxy sends this connection through the proxy proxy.example:3128: unset it" in described
        assert f"or add {named} to no_proxy" in described
        assert "password" not in described


class Tunnel(socketserver.StreamRequestHandler):
    """Answers CONNECT as a proxy does; each connection is counted on the server."""

    def handle(self) -> None:
        target = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port)), TIMEOUT) as there:
            self.server.tunnels += 1  # type: ignore[attr-defined]
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            ways = {self.connection: there, there: self.connection}
            while True:
                for source in select.select([*ways], [], [], TIMEOUT)[0]:
                    try:
                        received = source.recv(65_536)
                    except ConnectionError:
                        return
                    if not received:
                        return
                    ways[source].sendall(received)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[socketserver.ThreadingTCPServer]:
    """A proxy that works, and that the environment names."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tunnel) as running:
        running.daemon_threads = True
        running.tunnels = 0  # type: ignore[attr-defined]
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{running.server_address[1]}")
        yield running
        running.shutdown()


@pytest.mark.parametrize("exceptions", ["", "127.0.0.1"])
def test_a_proxy_that_works_is_not_blamed_for_an_answer(
    proxy: socketserver.ThreadingTCPServer, monkeypatch: pytest.MonkeyPatch, exceptions: str
) -> None:
    monkeypatch.setenv("no_proxy", exceptions)
    with served(Refusing(grpc.StatusCode.UNAVAILABLE)) as client:
        for call in (lambda: client.recognize(draw(7)), lambda: next(client.recognize_stream([draw(7)]))):
            with pytest.raises(grpc.RpcError, match="refused by the test") as refusal:
                call()
            assert not isinstance(refusal.value, ProxyUnavailable)
    assert bool(proxy.tunnels) == (not exceptions)  # type: ignore[attr-defined]


def test_a_proxy_that_can_not_be_resolved_or_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Forbidding) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        for proxy in ("proxy.invalid:3128", f"127.0.0.1:{refusing.server_address[1]}"):
            monkeypatch.setenv("http_proxy", f"http://{proxy}")
            with (
                DigitClient("localhost:1", TIMEOUT) as client,
                pytest.raises(ProxyUnavailable, match=f"through the proxy {proxy}"),
            ):
                client.recognize(draw(7))
        refusing.shutdown()


class Forbidding(socketserver.StreamRequestHandler):
    """Refuses every tunnel."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


def test_the_error_of_a_call_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, server = free_ports(2)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
    with DigitClient(f"localhost:{server}", TIMEOUT) as client:
        for call in (lambda: client.recognize(draw(7)), lambda: next(client.recognize_stream([draw(7)]))):
            with pytest.raises(
                ProxyUnavailable, match=f"UNAVAILABLE.*http_proxy.*127.0.0.1:{proxy}.*add localhost to no_proxy"
            ):
                call()
