from collections.abc import Callable, Iterator

import pytest

from serving.cli.main import main
from serving.samples.draw import SAMPLES
from tests.support.service import Service, service

Digits = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def running() -> Iterator[Service]:
    """A service with the sample lexicon, which marks every accepted answer for audit."""
    lexicons = str(SAMPLES / "lexicons")
    with service("--workers", "1", "--lexicons", lexicons, "--audit-rate", "1", "--drain-seconds", "0") as started:
        yield started


@pytest.fixture
def digits(running: Service, capsys: pytest.CaptureFixture[str]) -> Digits:
    """Runs a command that connects to the service; returns its exit status, its stdout and its stderr."""

    def run(command: str, *arguments: object) -> tuple[int, str, str]:
        status = main([command, "--address", running.address, *map(str, arguments)])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run
