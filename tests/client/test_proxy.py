import pytest

from serving.client import DigitClient, ProxyUnavailable
from serving.client.proxy import describe_proxy
from serving.samples.draw import draw
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


def test_the_error_of_a_call_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, server = free_ports(2)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
    with DigitClient(f"localhost:{server}", TIMEOUT) as client:
        for call in (lambda: client.recognize(draw(7)), lambda: next(client.recognize_stream([draw(7)]))):
            with pytest.raises(
                ProxyUnavailable, match=f"UNAVAILABLE.*http_proxy.*127.0.0.1:{proxy}.*add localhost to no_proxy"
            ):
                call()
