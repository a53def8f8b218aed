import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme

from tests.deploy.conftest import Prove
from tests.deploy.envoy import MUTUAL_TLS, Envoy
from tests.deploy.envoy_proxy import EnvoyProxy, envoy_proxy
from tests.deploy.load import one_connection, until
from tests.support.calls import TIMEOUT
from tests.support.credentials import chain, key, root

pytestmark = pytest.mark.deploy

NAME = "digits-headless"
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def mount(certificate: trustme.LeafCert, authority: trustme.CA, directory: Path, version: str) -> None:
    """Replaces the files of a mounted Secret atomically, as the kubelet does: through a symlink."""
    content = directory / version
    content.mkdir(parents=True)
    for name, data in (("tls.crt", chain(certificate)), ("tls.key", key(certificate)), ("ca.crt", root(authority))):
        (content / name).write_bytes(data)
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
    (directory / "..data_tmp").symlink_to(version)
    (directory / "..data_tmp").rename(directory / "..data")


def tls_flags(directory: Path) -> tuple[str, ...]:
    files = {"certificate": "tls.crt", "key": "tls.key", "client-ca": "ca.crt"}
    return tuple(flag for name, file in files.items() for flag in (f"--tls-{name}", str(directory / file)))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[tuple[EnvoyProxy, Path]]:
    """Starts Envoy and replicas with certificates. Yields them and the directory of the shared Secret."""
    mounted = tmp_path_factory.mktemp("secret")
    mount(authority.issue_cert(NAME, "127.0.0.1"), authority, mounted, "first")
    directory = tmp_path_factory.mktemp("secured")
    with envoy_proxy(directory, *tls_flags(mounted), variant=MUTUAL_TLS, certificates=mounted) as started:
        yield started, mounted


def credentials_of(authority: trustme.CA, certificate: trustme.LeafCert | None) -> grpc.ChannelCredentials:
    """Returns the credentials of a client that trusts an authority."""
    return grpc.ssl_channel_credentials(root(authority), *((key(certificate), chain(certificate)) if certificate else ()))


def test_only_clients_with_a_certificate_of_the_authority_are_answered(
    secured: tuple[EnvoyProxy, Path], authority: trustme.CA, prove: Prove
) -> None:
    started, _ = secured
    client, stranger = authority.issue_cert("client"), trustme.CA().issue_cert("client")
    with one_connection(started.envoy.address, credentials_of(authority, client)) as read:
        assert [read(digit) for digit in range(10)] == [*range(10)]
    refused = [grpc.ssl_channel_credentials(root(authority)), credentials_of(authority, stranger), None]
    for credentials in refused:
        with one_connection(started.envoy.address, credentials) as read, pytest.raises(grpc.RpcError) as refusal:
            read(7)
        assert refusal.value.code() is UNAVAILABLE
    prove("a certificate of the authority: answered; none, another authority, no TLS: refused")


def test_envoy_calls_replicas_with_tls_and_checks_their_health_without(
    secured: tuple[EnvoyProxy, Path], authority: trustme.CA
) -> None:
    started, _ = secured
    with one_connection(started.envoy.address, credentials_of(authority, authority.issue_cert("client"))) as read:
        assert read(7) == 7
    assert started.envoy.stat("cluster.digits.ssl.handshake") > 0
    assert started.envoy.stat("cluster.digits.health_check.success") > 0
    without = f"{started.replicas[0].address}:{started.ports.replica_grpc}"
    with one_connection(without) as read, pytest.raises(grpc.RpcError) as refusal:
        read(7)
    assert refusal.value.code() is UNAVAILABLE


def test_envoy_calls_no_replica_whose_certificate_has_another_name(tmp_path: Path, authority: trustme.CA) -> None:
    own, others = tmp_path / "own", tmp_path / "others"
    mount(authority.issue_cert(NAME, "127.0.0.1"), authority, own, "first")
    mount(authority.issue_cert("somebody-else"), authority, others, "first")
    client = credentials_of(authority, authority.issue_cert("client"))
    with envoy_proxy(tmp_path, *tls_flags(others), variant=MUTUAL_TLS, certificates=own, count=1) as started:
        with one_connection(started.envoy.address, client) as read, pytest.raises(grpc.RpcError) as refusal:
            read(7)
        assert refusal.value.code() is UNAVAILABLE
        assert started.envoy.stat("cluster.digits.ssl.fail_verify_san") > 0


def test_envoy_loads_a_renewed_certificate_without_a_restart(
    secured: tuple[EnvoyProxy, Path], authority: trustme.CA
) -> None:
    started, mounted = secured
    before = certificate_of(started.envoy, authority)
    mount(authority.issue_cert(NAME, "127.0.0.1"), authority, mounted, "second")
    until(lambda: certificate_of(started.envoy, authority) != before)
    with one_connection(started.envoy.address, credentials_of(authority, authority.issue_cert("client"))) as read:
        assert read(7) == 7


def certificate_of(one: Envoy, authority: trustme.CA) -> str:
    """Returns the serial number of the certificate that Envoy presents."""
    context = ssl.create_default_context(cadata=root(authority).decode())
    authority.issue_cert("client").configure_cert(context)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((one.ports.host, one.ports.grpc), TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=one.ports.host) as secure,
    ):
        return str((secure.getpeercert() or {})["serialNumber"])
