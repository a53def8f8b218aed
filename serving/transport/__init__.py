"""Transports: bytes in, bytes out. They end gRPC and its kin here; all else is the dispatcher's.

http2_front   a server of our own on HTTP/2, which bounds what each client holds.
connect       protocols for callers without gRPC, on the same port.
grpc_front    grpcio's server, in its place.
grpc_options  limits and keepalive of grpcio's server.
routes        finds the handler of a call and admits its caller, for either front.
shares        who gives way when what all callers share runs out.
stream        bidirectional streams with backpressure.
health        grpc.health.v1.
reflection    gRPC reflection.
"""
