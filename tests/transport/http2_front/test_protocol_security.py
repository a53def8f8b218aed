"""Tokens, TLS and mutual TLS hold for every protocol of the port."""

import asyncio
import base64
import json
import ssl
from pathlib import Path

import pytest
import trustme

from serving.api import digits
from serving.pb.digits.v1 import digit_service_pb2 as pb
from tests.support.calls import TIMEOUT
from tests.support.credentials import TOKEN, Files, entry, issue, root
from tests.support.http2_client import Http2Client, Response, grpc_message, http2_client
from tests.support.metrics import value
from tests.support.servers import StartServer

RECOGNIZE = f"/{digits.NAME}/Recognize"
MESSAGE = pb.RecognizeRequest(image=bytes(784)).SerializeToString()
FRAMED = grpc_message(MESSAGE)
BODIES = {
    "application/grpc": FRAMED,
    "application/grpc-web": FRAMED,
    "application/grpc-web-text": base64.b64encode(FRAMED),
    "application/proto": MESSAGE,
    "application/json": json.dumps({"image": base64.b64encode(bytes(784)).decode()}).encode(),
}


@pytest.fixture
def front() -> str:
    return "http2"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    files = Files(tmp_path)
    files.put(issue(authority), authority)
    return files


def code(response: Response) -> int:
    """Returns gRPC's status code of a response in any of the protocols."""
    content_type = response.headers["content-type"]
    if content_type in ("application/proto", "application/json"):
        return {"200": 0, "401": 16, "403": 7, "429": 8}[response.headers[":status"]]
    if content_type == "application/grpc":
        return int(response.headers["grpc-status"])
    body = base64.b64decode(response.body) if content_type.endswith("text") else response.body
    return int(body.partition(b"grpc-status: ")[2].split(b"\r\n")[0])


async def call(client: Http2Client, content_type: str, token: str | None = None) -> Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return await client.call(RECOGNIZE, BODIES[content_type], content_type=content_type, **headers)


async def test_every_protocol_asks_for_the_token_and_its_role(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(entry("sorter-7") + entry("desk", "keying", '"truth"'))
    server = await start_server(tokens=tmp_path / "tokens.toml")
    async with http2_client(server.grpc_port) as client:
        for content_type in BODIES:
            codes = [code(await call(client, content_type, token)) for token in (None, TOKEN + "x", "keying", TOKEN)]
            assert codes == [16, 16, 7, 0], content_type
        health = await client.call("/grpc.health.v1.Health/Check", b"{}", content_type="application/json")
        assert health.headers[":status"] == "200"
        forgotten = await client.call(f"/{digits.NAME}/Forget", b"{}", content_type="application/json")
        assert forgotten.headers[":status"] == "401", "an unknown caller learns of no method"
    refused = value(server.metrics.registry, "digits_requests_total", method="Recognize", code="UNAUTHENTICATED")
    assert refused == 2 * len(BODIES)


async def test_a_caller_without_a_token_is_answered_before_its_message_is_read(
    start_server: StartServer, tmp_path: Path
) -> None:
    (tmp_path / "tokens.toml").write_text(entry("sorter-7"))
    server = await start_server(tokens=tmp_path / "tokens.toml")
    async with http2_client(server.grpc_port) as client:
        for content_type in BODIES:
            _, response = client.send(RECOGNIZE, b"first bytes", ends=False, content_type=content_type)
            async with asyncio.timeout(TIMEOUT):
                await response.ended.wait()
            assert code(response) == 16


async def test_a_rate_limit_holds_for_all_protocols_together(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(entry("sorter-7", more="images_per_second = 0.001"))
    server = await start_server(tokens=tmp_path / "tokens.toml")
    async with http2_client(server.grpc_port) as client:
        codes = [code(await call(client, content_type, TOKEN)) for content_type in BODIES]
    assert codes == [0, 8, 8, 8, 8]


@pytest.mark.parametrize("mutual", [False, True])
async def test_every_protocol_works_over_tls(
    start_server: StartServer, files: Files, authority: trustme.CA, mutual: bool
) -> None:
    more = {"tls_client_ca": files.client_ca} if mutual else {}
    server = await start_server(tls_certificate=files.certificate, tls_key=files.key, **more)
    context = ssl.create_default_context(cadata=root(authority).decode())
    context.set_alpn_protocols(["h2"])
    if mutual:
        authority.issue_cert("sorter-7").configure_cert(context)
    async with http2_client(server.grpc_port, tls=context) as client:
        assert [code(await call(client, content_type)) for content_type in BODIES] == [0] * len(BODIES)


async def test_without_a_certificate_mutual_tls_reads_no_call(
    start_server: StartServer, files: Files, authority: trustme.CA
) -> None:
    server = await start_server(tls_certificate=files.certificate, tls_key=files.key, tls_client_ca=files.client_ca)
    context = ssl.create_default_context(cadata=root(authority).decode())
    context.set_alpn_protocols(["h2"])
    with pytest.raises((OSError, AssertionError, KeyError)):
        async with http2_client(server.grpc_port, tls=context) as client:
            code(await call(client, "application/json"))
    assert value(server.metrics.registry, "digits_requests_total") == 0


async def test_a_flood_of_handshakes_costs_no_other_network_its_own(
    start_server: StartServer, files: Files, authority: trustme.CA
) -> None:
    server = await start_server(tls_certificate=files.certificate, tls_key=files.key, max_connections_per_peer=3)
    context = ssl.create_default_context(cadata=root(authority).decode())
    context.set_alpn_protocols(["h2"])
    refused = 0
    for _ in range(20):
        try:
            async with http2_client(server.grpc_port, tls=context) as client:
                await call(client, "application/grpc")
        except OSError:
            refused += 1
    assert 0 < refused < 20
    assert value(server.metrics.registry, "digits_limits_reached_total", limit="handshakes_per_second") == refused
    async with http2_client(server.grpc_port, tls=context, local_address=("127.0.0.2", 0)) as client:
        assert code(await call(client, "application/grpc")) == 0


async def test_a_client_of_http_1_over_tls_learns_what_the_port_speaks(
    start_server: StartServer, files: Files, authority: trustme.CA
) -> None:
    server = await start_server(tls_certificate=files.certificate, tls_key=files.key)
    context = ssl.create_default_context(cadata=root(authority).decode())
    context.set_alpn_protocols(["http/1.1"])
    async with asyncio.timeout(TIMEOUT):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port, ssl=context)
        writer.write(b"GET / HTTP/1.1\r\nhost: digits\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 505 ")
        writer.close()
