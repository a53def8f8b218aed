import hashlib
import logging
import os
from pathlib import Path

import pytest

from serving.errors import PermissionDenied, Unauthenticated
from serving.security.tokens import TokenAuthenticator
from serving.telemetry.metrics import Metrics
from tests.security.conftest import OpenTokens, settle
from tests.support.credentials import TOKEN, bearer, entry
from tests.support.metrics import value


def test_a_client_is_known_by_its_token_and_has_the_roles_of_the_file(open_tokens: OpenTokens) -> None:
    authenticator = open_tokens(entry("sorter-7") + entry("desk", "d3", '"truth", "admin"'))
    assert authenticator.authenticate(bearer(TOKEN), "recognize").name == "sorter-7"
    assert authenticator.authenticate(bearer("d3"), "admin").name == "desk"
    assert authenticator.authenticate(bearer("d3"), None).name == "desk"
    with pytest.raises(PermissionDenied, match="client desk does not have the role recognize"):
        authenticator.authenticate(bearer("d3"), "recognize")


@pytest.mark.parametrize("scheme", ["bearer", "BEARER"])
def test_the_case_of_the_scheme_makes_no_difference(open_tokens: OpenTokens, scheme: str) -> None:
    assert open_tokens(entry("sorter-7")).authenticate((("authorization", f"{scheme} {TOKEN}"),), "recognize")


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
def test_every_invalid_token_gets_the_same_message(
    open_tokens: OpenTokens, metadata: tuple[tuple[str, str | bytes], ...] | None
) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        open_tokens(entry("sorter-7")).authenticate(metadata, "recognize")
    assert str(refusal.value) == "no valid token: this server asks for metadata `authorization: Bearer TOKEN`"


def test_an_added_client_is_admitted_and_a_removed_one_is_not(open_tokens: OpenTokens, tokens: Path) -> None:
    authenticator = open_tokens(entry("sorter-7"))
    sorter = authenticator.authenticate(bearer(TOKEN), "recognize")
    tokens.write_text(entry("sorter-8", "t8"))
    settle(authenticator)
    assert authenticator.authenticate(bearer("t8"), "recognize").name == "sorter-8"
    with pytest.raises(Unauthenticated):
        authenticator.authenticate(bearer(TOKEN), "recognize")
    with pytest.raises(Unauthenticated):
        sorter.spend(1)  # in the middle of a stream


@pytest.mark.parametrize(
    ("after", "revoked"),
    [
        (entry("sorter-7"), False),
        (entry("sorter-7", roles='"recognize", "truth", "admin"'), False),
        (entry("sorter-7", roles='"recognize", "truth"', more="images_per_second = 10"), False),
        (entry("sorter-7", roles='"truth"'), True),
        (entry("sorter-7", "another", roles='"recognize", "truth"'), True),
        (entry("sorter-8", roles='"recognize", "truth"'), True),
    ],
)
def test_a_client_is_revoked_only_if_its_token_or_a_role_is_withdrawn(
    open_tokens: OpenTokens, tokens: Path, after: str, revoked: bool
) -> None:
    authenticator = open_tokens(
        entry("sorter-7", roles='"recognize", "truth"' if revoked or "truth" in after else '"recognize"')
    )
    client = authenticator.authenticate(bearer(TOKEN), "recognize")
    tokens.write_text(after + entry("other", "other"))
    settle(authenticator)
    assert client.revoked is revoked


def test_a_secret_that_kubernetes_switches_is_reloaded(tmp_path: Path, metrics: Metrics) -> None:
    for version, token in (("..1", TOKEN), ("..2", "new")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "tokens.toml").write_text(entry("sorter-7", token))
        os.utime(tmp_path / version / "tokens.toml", (0, 0))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "tokens.toml").symlink_to("..data/tokens.toml")
    authenticator = TokenAuthenticator(tmp_path / "tokens.toml", metrics)
    (tmp_path / "..tmp").symlink_to("..2")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    settle(authenticator)
    assert authenticator.authenticate(bearer("new"), "recognize").name == "sorter-7"
    authenticator.close()


def test_a_broken_file_is_logged_once_counted_per_poll_and_not_applied(
    open_tokens: OpenTokens, tokens: Path, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    authenticator = open_tokens(entry("sorter-7"))
    for broken in (b"[clients.sorter-7]\n", b"\xff", None):
        before = value(metrics.registry, "digits_credentials_reload_failures_total", kind="tokens")
        if broken is None:
            tokens.unlink()
        else:
            tokens.write_bytes(broken)
        settle(authenticator)
        settle(authenticator)
        settle(authenticator)
        assert [record.levelname for record in caplog.records] == ["ERROR"], broken
        assert str(tokens) in caplog.text
        assert "the previous content stays in use" in caplog.text
        caplog.clear()
        assert value(metrics.registry, "digits_credentials_reload_failures_total", kind="tokens") == before + 3
        assert authenticator.authenticate(bearer(TOKEN), "recognize").name == "sorter-7"
    tokens.write_text(entry("sorter-8"))
    settle(authenticator)
    assert authenticator.authenticate(bearer(TOKEN), "recognize").name == "sorter-8"
    assert caplog.messages == [f"tokens reloaded: {tokens}"]
    before = value(metrics.registry, "digits_credentials_reload_failures_total", kind="tokens")
    settle(authenticator)
    assert value(metrics.registry, "digits_credentials_reload_failures_total", kind="tokens") == before


def test_a_file_that_is_being_written_locks_no_client_out(open_tokens: OpenTokens, tokens: Path) -> None:
    whole = entry("sorter-7") + entry("desk", "d3")
    authenticator = open_tokens(whole)
    after = entry("new", "n") + whole
    for written in range(0, len(after), 7):
        tokens.write_text(after[:written])
        authenticator.poll()
        assert authenticator.authenticate(bearer("d3"), "recognize").name == "desk"
        assert authenticator.authenticate(bearer(TOKEN), "recognize").name == "sorter-7"
    tokens.write_text(after)
    settle(authenticator)
    assert authenticator.authenticate(bearer("n"), "recognize").name == "new"
