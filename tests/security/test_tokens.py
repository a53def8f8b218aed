import asyncio
import hashlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from serving.api import digits
from serving.errors import PermissionDenied, RateLimited, Unauthenticated
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from serving.security.credential_files import CredentialsError
from serving.security.tokens import Access
from serving.telemetry.metrics import Metrics
from tests.conftest import TIMEOUT, GatedModel, StartServer, until, value
from tests.support.credentials import TOKEN, bearer, entry

OpenAccess = Callable[..., Access]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def access(tokens: Path, metrics: Metrics) -> Iterator[OpenAccess]:
    """Opens the token file, with the content given."""
    opened = []

    def open_access(content: str, limits: Path | None = None) -> Access:
        tokens.write_text(content)
        opened.append(Access(tokens, metrics, limits))
        return opened[-1]

    yield open_access
    for one in opened:
        one.close()


def settle(access: Access) -> None:
    """Looks at the file as often as a change takes to count."""
    while not access._files.poll():
        pass


def test_a_client_is_known_by_its_token_and_has_the_roles_of_the_file(access: OpenAccess) -> None:
    opened = access(entry("sorter-7") + entry("desk", "d3", '"truth", "admin"'))
    assert opened.admit(bearer(TOKEN), "recognize").name == "sorter-7"
    assert opened.admit(bearer("d3"), "admin").name == "desk"
    assert opened.admit(bearer("d3"), None).name == "desk"
    with pytest.raises(PermissionDenied, match="client desk does not have the role recognize"):
        opened.admit(bearer("d3"), "recognize")


@pytest.mark.parametrize("scheme", ["bearer", "BEARER"])
def test_the_case_of_the_scheme_makes_no_difference(access: OpenAccess, scheme: str) -> None:
    assert access(entry("sorter-7")).admit((("authorization", f"{scheme} {TOKEN}"),), "recognize")


GARBLED: list[tuple[tuple[str, str | bytes], ...] | None] = [
    None,
    (),
    bearer(""),
    bearer("unknown"),
    bearer(TOKEN.upper()),
    bearer(TOKEN + "x"),
    bearer(TOKEN[:-1]),
    bearer(f"{TOKEN} {TOKEN}"),
    bearer("ü" * 10),
    bearer("\udcff\x00"),
    bearer("x" * 100_000),
    bearer(hashlib.sha256(TOKEN.encode()).hexdigest()),
    (("authorization", TOKEN),),
    (("authorization", f"Basic {TOKEN}"),),
    (("authorization", "Bearer"),),
    (("authorization", f"Bearer {TOKEN}".encode()),),
    (("authorization-bin", f"Bearer {TOKEN}".encode()),),
    (("token", TOKEN),),
    bearer(TOKEN) + bearer(TOKEN),
]


@pytest.mark.parametrize("metadata", GARBLED)
def test_whatever_is_wrong_with_a_token_the_caller_is_told_the_same(
    access: OpenAccess, metadata: tuple[tuple[str, str | bytes], ...] | None
) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        access(entry("sorter-7")).admit(metadata, "recognize")
    assert str(refusal.value) == "no valid token: this server asks for metadata `authorization: Bearer TOKEN`"


def test_every_mistake_in_the_file_is_named_and_nothing_that_could_be_a_secret_is_shown(access: OpenAccess) -> None:
    with pytest.raises(CredentialsError) as refusal:
        access(
            '[clients.a]\ntoken_sha256 = "hunter2"\nroles = []\n'
            f'[clients.b]\ntoken_sha256 = "{"0" * 64}"\nroles = ["read"]\nimages_per_second = 0\n'
            f'[clients.c]\ntoken_sha256 = "{"1" * 64}"\nroles = ["admin"]\nburst = 5\n'
            f'[clients."d d"]\ntoken_sha256 = "{"2" * 64}"\nroles = ["admin"]\n'
        )
    told = str(refusal.value)
    for mistake in ("a.token_sha256", "a.roles", "b.roles", "b.images_per_second", "c.burst: Extra", "d d"):
        assert mistake in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "clients: Field required"),
        ("[clients]", "clients: Dictionary should have at least 1 item"),
        ("[clients.a", "is no TOML"),
        ("a = " + "[" * 10_000, "is no TOML"),
        (entry("a") + entry("b"), "a and b have the same token"),
        (entry("a", ""), "clients.a.token_sha256: that is the SHA-256 of nothing"),
        (entry("a", more='images_per_second = "5"'), "clients.a.images_per_second"),
        (entry("a", more="images_per_second = inf"), "clients.a.images_per_second"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(access: OpenAccess, tokens: Path, content: str, told: str) -> None:
    with pytest.raises(CredentialsError, match=told) as refusal:
        access(content)
    assert str(tokens) in str(refusal.value)


def test_a_missing_file_is_refused_by_name(tokens: Path, metrics: Metrics) -> None:
    with pytest.raises(CredentialsError, match=r"tokens\.toml cannot be read: No such file or directory"):
        Access(tokens, metrics)


def test_a_client_that_is_added_is_let_in_and_one_that_is_removed_is_not(access: OpenAccess, tokens: Path) -> None:
    opened = access(entry("sorter-7"))
    sorter = opened.admit(bearer(TOKEN), "recognize")
    tokens.write_text(entry("sorter-8", "t8"))
    settle(opened)
    assert opened.admit(bearer("t8"), "recognize").name == "sorter-8"
    with pytest.raises(Unauthenticated):
        opened.admit(bearer(TOKEN), "recognize")
    with pytest.raises(Unauthenticated):
        sorter.spend(1)  # in the middle of a stream


@pytest.mark.parametrize(
    ("after", "ends"),
    [
        (entry("sorter-7"), False),
        (entry("sorter-7", roles='"recognize", "truth", "admin"'), False),
        (entry("sorter-7", roles='"recognize", "truth"', more="images_per_second = 10"), False),
        (entry("sorter-7", roles='"truth"'), True),
        (entry("sorter-7", "another", roles='"recognize", "truth"'), True),
        (entry("sorter-8", roles='"recognize", "truth"'), True),
    ],
)
def test_calls_under_way_end_when_their_token_or_a_role_is_taken_back_and_only_then(
    access: OpenAccess, tokens: Path, after: str, ends: bool
) -> None:
    opened = access(entry("sorter-7", roles='"recognize", "truth"' if ends or "truth" in after else '"recognize"'))
    client = opened.admit(bearer(TOKEN), "recognize")
    tokens.write_text(after + entry("other", "other"))
    settle(opened)
    assert client.revoked is ends


def test_a_secret_that_kubernetes_switches_is_noticed(tmp_path: Path, metrics: Metrics) -> None:
    for version, token in (("..1", TOKEN), ("..2", "new")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "tokens.toml").write_text(entry("sorter-7", token))
        os.utime(tmp_path / version / "tokens.toml", (0, 0))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "tokens.toml").symlink_to("..data/tokens.toml")
    opened = Access(tmp_path / "tokens.toml", metrics)
    (tmp_path / "..tmp").symlink_to("..2")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    settle(opened)
    assert opened.admit(bearer("new"), "recognize").name == "sorter-7"
    opened.close()


def test_a_file_in_use_that_breaks_is_logged_once_counted_while_it_is_so_and_changes_nothing(
    access: OpenAccess, tokens: Path, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    opened = access(entry("sorter-7"))
    for broken in (b"[clients.sorter-7]\n", b"\xff", None):
        before = value(metrics.registry, "digits_credentials_reload_failures_total", kind="tokens")
        if broken is None:
            tokens.unlink()
        else:
            tokens.write_bytes(broken)
        settle(opened)
        settle(opened)
        settle(opened)
        assert [record.levelname for record in caplog.records] == ["ERROR"], broken
        assert str(tokens) in caplog.text
        assert "going on with what was read before" in caplog.text
        caplog.clear()
        assert value(metrics.registry, "digits_credentials_reload_failures_total", kind="tokens") == before + 3
        assert opened.admit(bearer(TOKEN), "recognize").name == "sorter-7"
    tokens.write_text(entry("sorter-8"))
    settle(opened)
    assert opened.admit(bearer(TOKEN), "recognize").name == "sorter-8"
    assert caplog.messages == [f"tokens read anew: {tokens}"]
    before = value(metrics.registry, "digits_credentials_reload_failures_total", kind="tokens")
    settle(opened)
    assert value(metrics.registry, "digits_credentials_reload_failures_total", kind="tokens") == before


def test_a_list_that_is_still_being_written_shuts_nobody_out(access: OpenAccess, tokens: Path) -> None:
    whole = entry("sorter-7") + entry("desk", "d3")
    opened = access(whole)
    after = entry("new", "n") + whole
    for written in range(0, len(after), 7):
        tokens.write_text(after[:written])
        opened._files.poll()
        assert opened.admit(bearer("d3"), "recognize").name == "desk"
        assert opened.admit(bearer(TOKEN), "recognize").name == "sorter-7"
    tokens.write_text(after)
    settle(opened)
    assert opened.admit(bearer("n"), "recognize").name == "new"


def test_a_client_may_send_one_seconds_worth_at_once_and_is_told_when_to_come_back(access: OpenAccess) -> None:
    opened = access(entry("sorter-7", more="images_per_second = 100") + entry("desk", "d3"))
    client = opened.admit(bearer(TOKEN), "recognize")
    for _ in range(10):
        client.spend(10)
    with pytest.raises(RateLimited, match="client sorter-7 has used up its 100 images a second") as refusal:
        client.spend(100)
    assert 0 < (refusal.value.retry_after_seconds or 0) <= 1
    opened.admit(bearer("d3"), "recognize").spend(1_000_000)


def test_a_call_with_more_than_one_seconds_worth_is_taken_and_paid_off_afterwards(access: OpenAccess) -> None:
    opened = access(entry("sorter-7", more="images_per_second = 100"))
    client = opened.admit(bearer(TOKEN), "recognize")
    client.spend(10_000)
    with pytest.raises(RateLimited) as refusal:
        client.spend(1)
    assert 90 < (refusal.value.retry_after_seconds or 0) <= 99.01


def test_what_is_given_back_can_be_spent_again_and_no_more(access: OpenAccess) -> None:
    client = access(entry("sorter-7", more="images_per_second = 0.001")).admit(bearer(TOKEN), "recognize")
    for _ in range(3):
        client.spend(1)
        client.give_back(1)
    client.spend(1)
    with pytest.raises(RateLimited):
        client.spend(1)


def test_a_client_that_waits_as_it_is_told_gets_the_rate_it_has(access: OpenAccess) -> None:
    client = access(entry("sorter-7", more="images_per_second = 2000")).admit(bearer(TOKEN), "recognize")
    start, sent = time.monotonic(), 0
    while time.monotonic() < start + 0.5:
        try:
            client.spend(50)
            sent += 50
        except RateLimited as refusal:
            time.sleep(refusal.retry_after_seconds or 0)
    elapsed = time.monotonic() - start
    assert sent <= 2000 + 2000 * elapsed
    assert sent >= 2000 + 2000 * 0.25, "one second's worth, and what came in half a second, on a machine that is busy"


def test_what_was_sent_outlives_a_change_of_the_file(access: OpenAccess, tokens: Path) -> None:
    opened = access(entry("sorter-7", more="images_per_second = 10"))
    opened.admit(bearer(TOKEN), "recognize").spend(1000)
    tokens.write_text(
        entry("desk", "d3", more="images_per_second = 10") + entry("sorter-7", "new", more="images_per_second = 20")
    )
    settle(opened)
    with pytest.raises(RateLimited, match="20 images"):
        opened.admit(bearer("new"), "recognize").spend(1)
    opened.admit(bearer("d3"), "recognize").spend(10)


HAMMER = """
import sys, time
from pathlib import Path
from serving.security.tokens import Access
from serving.errors import RateLimited
from serving.telemetry.metrics import Metrics

tokens, limits, token = sys.argv[1:]
client = Access(Path(tokens), Metrics(), Path(limits)).admit((("authorization", f"Bearer {token}"),), "recognize")
print("ready", flush=True)
sys.stdin.readline()
taken, start = 0, time.monotonic()
while (now := time.monotonic()) < start + 0.5:
    try:
        client.spend(1)
        taken += 1
    except RateLimited:
        pass
print(taken, start, now)
"""


def test_processes_share_a_clients_limit_though_they_have_read_different_lists(
    access: OpenAccess, tokens: Path, tmp_path: Path
) -> None:
    limits, other = tmp_path / "limits", tmp_path / "other.toml"
    limited = entry("sorter-7", more="images_per_second = 1000")
    opened = access(entry("desk", "d3", more="images_per_second = 100") + limited, limits)
    other.write_text(limited)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(path), str(limits), TOKEN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for path in (tokens, other)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    ended = []
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        taken, start, end = process.communicate(timeout=60)[0].split()
        ended.append((int(taken), float(start), float(end)))
    span = max(end for _, _, end in ended) - min(start for _, start, _ in ended)
    assert 1000 <= sum(taken for taken, _, _ in ended) <= 1000 + 1000 * span + 1
    opened.admit(bearer("d3"), "recognize").spend(100)
    assert limits.stat().st_mode & 0o777 == 0o600


# Through a server.

RECOGNIZE = f"/{digits.NAME}/Recognize"
IMAGE = pb.RecognizeRequest(image=bytes(784)).SerializeToString()
TWO_CLIENTS = entry("sorter-7") + entry("desk", "d3", '"truth"')


@pytest.fixture
async def channel(start_server: StartServer, tokens: Path) -> AsyncIterator[tuple[grpc.aio.Channel, Server]]:
    """A connection to a server that asks for the tokens of two clients, and looks at the file all the time."""
    tokens.write_text(TWO_CLIENTS)
    server = await start_server(tokens=tokens, poll_seconds=0.02, max_images_per_request=1000)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened, server


async def call(
    channel: grpc.aio.Channel, token: str, path: str = RECOGNIZE, request: bytes = IMAGE
) -> grpc.aio.AioRpcError | None:
    """How a call ends; None when it is answered."""
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    try:
        await method(request, timeout=TIMEOUT, metadata=bearer(token))
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def until_it_ends(channel: grpc.aio.Channel, token: str, code: grpc.StatusCode | None) -> None:
    """Waits until a client's calls end with a code, None for those that are answered."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            error = await call(channel, token)
            if (error.code() if error else None) is code:
                return
            await asyncio.sleep(0.01)


async def test_calls_that_are_refused_are_counted_and_never_read(channel: tuple[grpc.aio.Channel, Server]) -> None:
    opened, server = channel
    registry = server.metrics.registry
    huge = bytes(100_000_000)
    for path, name in ((RECOGNIZE, "Recognize"), ("/digits.v1.DigitService/Forget", "unknown")):
        for request in (IMAGE, huge, b"\xff"):
            error = await call(opened, "wrong", path, request)
            assert error
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert value(registry, "digits_requests_total", method=name, code="UNAUTHENTICATED") == 3
    error = await call(opened, "d3", RECOGNIZE, huge)
    assert error
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details() == "client desk does not have the role recognize"
    assert value(registry, "digits_rejected_requests_total", reason="unauthenticated") == 6
    assert value(registry, "digits_rejected_requests_total", reason="permission_denied") == 1


async def test_a_server_takes_up_tokens_that_come_and_go_by_itself(
    channel: tuple[grpc.aio.Channel, Server], tokens: Path
) -> None:
    opened, server = channel
    await until_it_ends(opened, TOKEN, None)
    tokens.write_text(TWO_CLIENTS + entry("sorter-8", "t8"))
    await until_it_ends(opened, "t8", None)
    tokens.write_text(entry("sorter-8", "t8"))
    await until_it_ends(opened, TOKEN, grpc.StatusCode.UNAUTHENTICATED)
    tokens.write_text(entry("sorter-8", "t8")[:-40])
    async with asyncio.timeout(TIMEOUT):
        while not value(server.metrics.registry, "digits_credentials_reload_failures_total", kind="tokens"):
            await asyncio.sleep(0.01)
    await until_it_ends(opened, "t8", None)


async def test_a_stream_ends_when_its_clients_token_is_taken_back(
    channel: tuple[grpc.aio.Channel, Server], tokens: Path
) -> None:
    opened, _ = channel
    stream = DigitServiceStub(opened).RecognizeStream(timeout=TIMEOUT, metadata=bearer(TOKEN))
    request = pb.RecognizeStreamRequest(request=pb.RecognizeRequest(image=bytes(784)))
    await stream.write(request)
    assert (await stream.read()).answer.model_version
    tokens.write_text(entry("desk", "d3", '"truth"'))
    await until_it_ends(opened, TOKEN, grpc.StatusCode.UNAUTHENTICATED)
    await stream.write(request)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_client_over_its_limit_is_told_when_to_come_back_and_others_are_not_held_up(
    channel: tuple[grpc.aio.Channel, Server], tokens: Path
) -> None:
    opened, server = channel
    tokens.write_text(entry("sorter-7", more="images_per_second = 50") + entry("sorter-8", "t8"))
    await until_it_ends(opened, "t8", None)
    batch = pb.RecognizeBatchRequest(images=bytes(500 * 784)).SerializeToString()
    assert await call(opened, TOKEN, f"/{digits.NAME}/RecognizeBatch", batch) is None
    error = await call(opened, TOKEN)
    assert error
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "client sorter-7 has used up its 50 images a second"
    assert 5_000 < int(str(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])) <= 10_000
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="rate_limited") == 1
    assert await call(opened, "t8", f"/{digits.NAME}/RecognizeBatch", batch) is None

    stream = DigitServiceStub(opened).RecognizeStream(timeout=TIMEOUT, metadata=bearer(TOKEN))
    await stream.write(pb.RecognizeStreamRequest(id=7, request=pb.RecognizeRequest(image=bytes(784))))
    answer = await stream.read()
    assert answer.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert answer.error.retry_after_ms > 1000
    stream.cancel()


async def test_what_a_full_queue_refuses_costs_a_client_nothing(
    start_server: StartServer, gated: GatedModel, tokens: Path
) -> None:
    one_image = "images_per_second = 0.001"  # and the next after a quarter of an hour
    tokens.write_text(entry("sorter-7", more=one_image) + entry("sorter-8", "t8"))
    server = await start_server(gated, tokens=tokens, instances=1, max_queue_size=10, max_images_per_request=10)
    batch = pb.RecognizeBatchRequest(images=bytes(10 * 784)).SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        running = asyncio.create_task(call(opened, "t8"))
        await gated.run_starts()
        waiting = asyncio.create_task(call(opened, "t8", f"/{digits.NAME}/RecognizeBatch", batch))
        await until(server.metrics.registry, "digits_queue_length_images", 10)
        for _ in range(3):
            error = await call(opened, TOKEN)
            assert error
            assert "the queue is full" in (error.details() or "")
        gated.open()
        assert [await running, await waiting] == [None, None]
        assert await call(opened, TOKEN) is None
        error = await call(opened, TOKEN)
        assert error
        assert "has used up" in (error.details() or ""), "what is answered is paid for"


async def test_a_token_that_is_no_text_is_refused_and_not_logged(
    channel: tuple[grpc.aio.Channel, Server], caplog: pytest.LogCaptureFixture
) -> None:
    _, server = channel
    fields = {":method": b"POST", ":scheme": b"http", ":path": RECOGNIZE.encode(), ":authority": b"digits"}
    fields |= {"te": b"trailers", "content-type": b"application/grpc", "authorization": b"Bearer \xff\xfe" + TOKEN.encode()}
    # Literal header fields, RFC 7541, 6.2.2: names and values by their lengths, neither indexed nor compressed.
    block = b"".join(bytes([0, len(k)]) + k.encode() + bytes([len(v)]) + v for k, v in fields.items())
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    headers = bytes([0, 0, len(block), 1, 4, 0, 0, 0, 1]) + block
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + headers)
    async with asyncio.timeout(TIMEOUT):
        await reader.readuntil(b"no valid token")
    writer.close()
    await writer.wait_closed()
    assert TOKEN not in caplog.text
    assert not caplog.records


@pytest.mark.parametrize("reflection", [True, False])
async def test_reflection_is_for_clients_and_can_be_switched_off(
    start_server: StartServer, tokens: Path, reflection: bool
) -> None:
    tokens.write_text(TWO_CLIENTS)
    server = await start_server(tokens=tokens, reflection=reflection)
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        error = await call(opened, "wrong", path, request)
        assert error
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        error = await call(opened, "d3", path, request)
        assert (error.code() if error else None) is (None if reflection else grpc.StatusCode.UNIMPLEMENTED)


async def test_truth_is_taken_from_those_who_may_report_it_and_images_from_those_who_may_not(
    channel: tuple[grpc.aio.Channel, Server],
) -> None:
    opened, _ = channel
    request = pb.RecognizeRequest(image=bytes(784))
    answer = await DigitServiceStub(opened).Recognize(request, timeout=TIMEOUT, metadata=bearer(TOKEN))
    report = pb.ReportTruthRequest()
    report.truths.add(recognition_id=answer.recognition_id, values={0: "7"}, source=pb.TRUTH_SOURCE_KEYING)
    path = f"/{digits.NAME}/ReportTruth"
    error = await call(opened, TOKEN, path, report.SerializeToString())
    assert error
    assert error.details() == "client sorter-7 does not have the role truth"
    assert await call(opened, "d3", path, report.SerializeToString()) is None
    report.truths[0].source = pb.TRUTH_SOURCE_UNSPECIFIED
    error = await call(opened, "d3", path, report.SerializeToString())
    assert error
    assert error.details() == "truth 0: its source is 0, expected one of TruthSource"
    error = await call(opened, "d3", path, b"")
    assert error
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "there are 0 truths, expected 1 to 1000",
    )
