from pathlib import Path

import pytest

from serving.security.credential_files import CredentialsError
from serving.security.tokens import TokenAuthenticator
from serving.telemetry.metrics import Metrics
from tests.security.conftest import OpenTokens
from tests.support.credentials import entry


def test_every_error_in_the_file_is_named_without_its_value(open_tokens: OpenTokens) -> None:
    with pytest.raises(CredentialsError) as refusal:
        open_tokens(
            '[clients.a]\ntoken_sha256 = "hunter2"\nroles = []\n'
            f'[clients.b]\ntoken_sha256 = "{"0" * 64}"\nroles = ["read"]\nimages_per_second = 0\n'
            f'[clients.c]\ntoken_sha256 = "{"1" * 64}"\nroles = ["admin"]\nburst = 5\n'
            f'[clients."d d"]\ntoken_sha256 = "{"2" * 64}"\nroles = ["admin"]\n'
        )
    message = str(refusal.value)
    for error in ("a.token_sha256", "a.roles", "b.roles", "b.images_per_second", "c.burst: Extra", "d d"):
        assert error in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "clients: Field required"),
        ("[clients]", "clients: Dictionary should have at least 1 item"),
        ("[clients.a", "is not valid TOML"),
        ("a = " + "[" * 10_000, "is not valid TOML"),
        (entry("a") + entry("b"), "a and b have the same token"),
        (entry("a", ""), "clients.a.token_sha256: that is the SHA-256 of an empty token"),
        (entry("a", more='images_per_second = "5"'), "clients.a.images_per_second"),
        (entry("a", more="images_per_second = inf"), "clients.a.images_per_second"),
    ],
)
def test_an_invalid_file_is_refused_with_its_path_and_the_reason(
    open_tokens: OpenTokens, tokens: Path, content: str, reason: str
) -> None:
    with pytest.raises(CredentialsError, match=reason) as refusal:
        open_tokens(content)
    assert str(tokens) in str(refusal.value)


def test_a_missing_file_is_refused_with_its_path(tokens: Path, metrics: Metrics) -> None:
    with pytest.raises(CredentialsError, match=r"tokens\.toml cannot be read: No such file or directory"):
        TokenAuthenticator(tokens, metrics)
