"""A front of its own, for tests of how the protocols write what a handler does: no model, no service behind it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

from serving.api.dispatch import Dispatcher
from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from serving.transport.http2_front.front import Http2Front
from serving.transport.routes import Handler, Routes
from serving.transport.stream import Streams

StartFront = Callable[..., Awaitable[int]]
"""Starts a front that answers by handlers, with the settings given by name; returns its port."""


@pytest.fixture
async def start_front() -> AsyncIterator[StartFront]:
    fronts: list[Http2Front] = []

    async def start(handlers: Mapping[str, Handler], **settings: Any) -> int:
        metrics = Metrics()
        dispatcher = Dispatcher(metrics, None, None)
        routes = Routes(dispatcher, Streams(dispatcher, metrics, max_streams=10, max_in_flight=10))
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
