"""Options of the gRPC server of grpcio: message and queue limits, keepalive, connection age."""

from serving.settings import Settings

# Least interval of a client's keepalive pings. gRPC's own is five minutes, and it closes connections that ping more often.
_PING_INTERVAL_SECONDS = 10


def server_options(settings: Settings, *, shares_port: bool) -> list[tuple[str, int]]:
    """Builds the channel arguments of the gRPC server; `shares_port` lets other workers listen on the same port."""
    keepalive = round(settings.keepalive_seconds * 1000)
    options = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # gRPC refuses calls that a client sent before it knew the limit: at 1,000, it refused 1,783 of a burst of 5,000.
        # So this is the limit of a worker, which few connections reach.
        ("grpc.max_concurrent_streams", settings.max_open_calls),
        # Above the first limit gRPC refuses some calls at random, above the second all.
        ("grpc.max_metadata_size", settings.max_header_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
        ("grpc.max_connection_idle_ms", round(settings.idle_seconds * 1000)),
        ("grpc.server_handshake_timeout_ms", round(settings.preface_seconds * 1000)),
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
