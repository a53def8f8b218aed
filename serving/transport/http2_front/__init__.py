"""The front on HTTP/2: a gRPC server on libnghttp2 and asyncio, which bounds what each client may hold.

    front       bounds what all clients hold, sweeps, stops.
    listener    listens, and accepts connections.
    connection  one client: bytes to events to calls; answers to bytes.
    opening     begins a call, or answers a request that is none.
    lifetime    the time limits of a connection.
    exchange    one call on one stream: its deadline, its end.
    unary_exchange      gathers the one message of a call, and has it answered.
    streaming_exchange  messages in both directions, with backpressure.
    dialects    the protocols by media type: gRPC, and for callers without gRPC those of `connect`.
    dialect     what each protocol defines.
    grpc_dialect  gRPC.
    framing     length-prefixed messages and their decompression.
    head        the headers of a call.
    limits      all bounds, from the settings.
    engine      HTTP/2 itself, in libnghttp2.

A call arrives as `connection` -> `exchange` -> handler of `routes`, and its answer goes back the same way.
"""
