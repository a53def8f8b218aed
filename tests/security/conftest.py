"""Fixtures of the security tests: token files, authenticators, TLS files and their authorities."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from serving.security.tls import TLS
from serving.security.tokens import TokenAuthenticator
from serving.telemetry.metrics import Metrics
from tests.support.credentials import Files, issue

OpenTokens = Callable[..., TokenAuthenticator]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def open_tokens(tokens: Path, metrics: Metrics) -> Iterator[OpenTokens]:
    """Writes the token file and opens it."""
    authenticators = []

    def open_content(content: str, limits: Path | None = None) -> TokenAuthenticator:
        tokens.write_text(content)
        authenticators.append(TokenAuthenticator(tokens, metrics, limits))
        return authenticators[-1]

    yield open_content
    for authenticator in authenticators:
        authenticator.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    """TLS files of a server; `authority` has signed its certificate, and signs those of its clients."""
    files = Files(tmp_path)
    files.put(issue(authority), authority)
    return files


def settle(files: TokenAuthenticator | TLS) -> None:
    """Polls until two reads in a row find the same content."""
    while not files.poll():
        pass
