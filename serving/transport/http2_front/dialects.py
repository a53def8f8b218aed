"""The protocols that the port speaks, by the media type of the request."""

from serving.transport.connect.connect import ConnectDialect
from serving.transport.connect.cors import Cors
from serving.transport.connect.grpc_web import GrpcWebDialect, GrpcWebTextDialect
from serving.transport.connect.json_calls import JsonCalls
from serving.transport.http2_front.dialect import Dialect
from serving.transport.http2_front.grpc_dialect import GrpcDialect
from serving.transport.routes import Routes


def dialects(routes: Routes, cors: Cors) -> dict[bytes, Dialect]:
    """Returns the protocols, by media type without parameters."""
    grpc, web, text = b"application/grpc", b"application/grpc-web", b"application/grpc-web-text"
    proto, json = b"application/proto", b"application/json"
    return {
        **dict.fromkeys((grpc, grpc + b"+proto"), GrpcDialect()),
        **{kind: GrpcWebDialect(kind, cors) for kind in (web, web + b"+proto")},
        **{kind: GrpcWebTextDialect(kind, cors) for kind in (text, text + b"+proto")},
        proto: ConnectDialect(proto, cors),
        json: ConnectDialect(json, cors, JsonCalls(routes)),
    }
