"""What a front end says of each of its methods, so that any transport can call it; edge.py lets gRPC."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from serving.call import Call
from serving.errors import RequestError
from serving.security.token_file import Role

Request = TypeVar("Request", bound=Message)


@dataclass(frozen=True)
class Method(Generic[Request]):
    """A method of a service: with one request and one answer, or with a stream of requests that have one answer each.

    Attributes:
        name: in the service; its requests are counted as that.
        request_type: the message that it takes.
        work: answers one request, or raises RequestError.
        role: what a client needs to call it, where tokens are asked for; None when any client may.
        refuse: of a stream, what is answered to a request that `work` raised an error for, which comes with its gRPC status
            code's number. A method without it has one request, and the error ends the call.
        ordered: whether the answers of a stream go out in the order of the requests, or as they come to be ready.
    """

    name: str
    request_type: type[Request]
    work: Callable[[Request, Call], Awaitable[Message]]
    role: Role | None
    refuse: Callable[[Request, RequestError, int], Message] | None = None
    ordered: bool = False
