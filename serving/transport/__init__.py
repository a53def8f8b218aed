"""Transports: bytes in, bytes out. They end gRPC here; all else is the dispatcher's.

`grpc_front` answers gRPC calls, `stream` runs bidirectional streams with backpressure, `health` is grpc.health.v1, and
`grpc_options` sets limits, keepalive and reflection of the gRPC server.
"""
