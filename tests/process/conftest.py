"""Fixtures of the workers: a service with two of them, and a request."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.telemetry.multiprocess_metrics import DIRECTORY
from tests.support.service import Service, service


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Service]:
    """A service with two workers and a drain of half a second."""
    with service("--workers", "2", "--drain-seconds", "0.5", **{DIRECTORY: str(tmp_path)}) as started:
        yield started


@pytest.fixture
def request_one(images: NDArray[Any]) -> pb.RecognizeRequest:
    return pb.RecognizeRequest(image=images[0].tobytes())
