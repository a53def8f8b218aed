"""Calls to a server: the deadline that every call of a test has, and the error that a refused call ends with."""

from collections.abc import Awaitable

import grpc
import pytest

TIMEOUT = 20
"""Seconds; the deadline of every call and of every wait in a test that is not about deadlines."""


async def refused(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    """Waits for a call that must fail, and returns its error."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return refusal.value
