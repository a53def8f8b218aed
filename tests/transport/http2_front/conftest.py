"""A front of its own, without a model behind it; and one server for all cases of a file."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from serving.api.dispatch import Dispatcher
from serving.inference.classifier import Classifier
from serving.process.server import Server
from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from serving.transport.http2_front.front import Http2Front
from serving.transport.routes import Handler, Routes
from serving.transport.stream import Streams
from tests.support.calls import TIMEOUT
from tests.support.models import WarmModel, opens

CALLS_PER_CONNECTION = 100

StartFront = Callable[..., Awaitable[int]]
"""Starts a front that answers by handlers, with the settings given by name; returns its port."""


@pytest.fixture
async def start_front() -> AsyncIterator[StartFront]:
    """Starts fronts for tests of how the protocols write what a handler does."""
    fronts: list[Http2Front] = []

    async def start(handlers: Mapping[str, Handler], **settings: Any) -> int:
        metrics = Metrics()
        dispatcher = Dispatcher(metrics, None, None)
        routes = Routes(dispatcher, Streams(dispatcher, metrics, max_streams=10, max_in_flight=10, max_bytes=1 << 30))
        routes.add(handlers)
        fronts.append(Http2Front(Settings(**settings), routes, None, metrics, shares_port=False))
        port = fronts[-1].listen("127.0.0.1", 0)
        await fronts[-1].start()
        return port

    async def nothing() -> None:
        pass

    yield start
    for front in fronts:
        await front.stop(0, nothing)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wire_server(model: Classifier, one_model: Path) -> AsyncIterator[Server]:
    """A server of all cases of a file: a case must leave no trace."""
    settings = Settings(
        grpc_port=0, metrics_port=0, front="http2", models=one_model, max_calls_per_connection=CALLS_PER_CONNECTION
    )
    server = Server(settings, opens(WarmModel(model)))
    await server.start()
    yield server
    await server.stop(drain_seconds=0, grace_seconds=TIMEOUT)
