"""Protocols for callers without gRPC, on the same port: curl, browsers, and clients of Connect.

    connect     the Connect protocol: one HTTP POST a call, protobuf or JSON.
    grpc_web    gRPC-Web, whose trailers stand in the body.
    json_calls  turns a method that takes protobuf into one that takes JSON.
    cors        which web pages may call.

They call methods with one request; gRPC-Web also those with one request and many answers.
"""
