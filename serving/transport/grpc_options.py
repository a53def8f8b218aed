"""Options of the gRPC server of grpcio: message and queue limits, keepalive, connection age."""

from serving.contract import IMAGE_BYTES
from serving.settings import Settings

_LEAST_MESSAGE_BYTES = 4 << 20  # gRPC's own default, which leaves room for a crop

# Least interval of a client's keepalive pings. gRPC's own is five minutes, and it closes connections that ping more often.
_PING_INTERVAL_SECONDS = 10


def server_options(settings: Settings, *, shares_port: bool) -> list[tuple[str, int]]:
    """Builds the channel arguments of the gRPC server; `shares_port` lets other workers listen on the same port."""
    keepalive = round(settings.keepalive_seconds * 1000)
    # A pixel is one byte, and up to two bytes in a typed tensor of the Open Inference Protocol.
    message_bytes = settings.max_images_per_request * IMAGE_BYTES * 2 + 1024
    options = [
        ("grpc.max_receive_message_length", max(message_bytes, _LEAST_MESSAGE_BYTES)),
        # Without other workers the port is exclusive: a second service on it would get half of the connections.
        ("grpc.so_reuseport", int(shares_port)),
        # gRPC holds calls that come faster than the event loop takes them. It ends calls above the hard limit as CANCELLED,
        # and some calls above the soft limit at random; equal limits leave nothing to chance.
        ("grpc.server.max_pending_requests", settings.max_pending_calls),
        ("grpc.server.max_pending_requests_hard_limit", settings.max_pending_calls),
        ("grpc.keepalive_time_ms", keepalive),
        ("grpc.keepalive_timeout_ms", keepalive),
        ("grpc.http2.ping_timeout_ms", keepalive),  # default one minute; the longer of the two timeouts applies
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_SECONDS * 1000),
    ]
    if settings.max_connection_age_seconds:
        options.append(("grpc.max_connection_age_ms", round(settings.max_connection_age_seconds * 1000)))
        options.append(("grpc.max_connection_age_grace_ms", round(settings.max_connection_age_grace_seconds * 1000)))
    return options
