"""DOC."""

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.settings import Settings
from serving.transport.grpc_front import Handler

LEAST_MESSAGE_BYTES = 4 << 20  # gRPC's own limit


# How often clients may ask for a sign of life. gRPC's own limit is once in five minutes, and less patient ones are cut off.
_PING_INTERVAL_SECONDS = 10


def connection_options(settings: Settings) -> list[tuple[str, int]]:
    """How long connections live, as gRPC is told of it."""
    silence = round(settings.keepalive_seconds * 1000)
    options = [
        ("grpc.keepalive_time_ms", silence),
        ("grpc.keepalive_timeout_ms", silence),
        ("grpc.http2.ping_timeout_ms", silence),  # a minute otherwise, and the longer of the two is what counts
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_SECONDS * 1000),
    ]
    if settings.max_connection_age_seconds:
        options.append(("grpc.max_connection_age_ms", round(settings.max_connection_age_seconds * 1000)))
        options.append(("grpc.max_connection_age_grace_ms", round(settings.max_connection_age_grace_seconds * 1000)))
    return options


def reflection_handler(services: Sequence[str]) -> "Handler[Any, Any]":
    """Says what these services are; to any client, as all of it is public."""
    return grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(services).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
