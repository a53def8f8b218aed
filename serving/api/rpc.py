"""Describes a method of a service, so that any transport can call it."""

import operator
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from serving.api.side_thread import LONG_BYTES
from serving.call import Call
from serving.errors import RequestError
from serving.inference.entry import SingleImage
from serving.recognition.call_group import SingleRequest
from serving.security.token_file import Role

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Work: TypeAlias = Callable[[Request, Call], Awaitable[Answer]]


class ByRun(NamedTuple):
    """The way of requests for one image that are answered together with others of their run.

    Attributes:
        parse: bytes to a request; None for a request that only `Method.work` answers, also for a malformed one.
        enter: has the image read, or raises RequestError.
        join: joins the encoded answer and the fields that belong to its request alone.
    """

    parse: Callable[[bytes], SingleRequest | None]
    enter: Callable[[SingleRequest, SingleImage], None]
    join: Callable[[bytes, bytes], bytes] = operator.add


@dataclass(frozen=True)
class Method(Generic[Request, Answer]):
    """A method of a service: one request with one answer, or a stream of requests with one answer each.

    Attributes:
        service: full name of the service, such as "digits.v1.DigitService".
        name: name of the method in the service; requests are counted under this name.
        request: full name of the request's message, such as "digits.v1.RecognizeRequest", for errors.
        parse: bytes to a request. Raises InvalidRequest, or protobuf's DecodeError for bytes that are not a message. The
            message, which holds a second copy of the images, must not outlive this function.
        work: answers one request, or raises RequestError.
        encode: an answer to bytes.
        role: role that a client needs, where the server asks for tokens; None when any client may call.
        refuse: only of a stream: encodes the error of one encoded request as an answer, so that the stream goes on.
        ordered: only of a stream: answers keep the order of the requests, instead of going out as they become ready.
        by_run: the way of the requests that are answered by the run of the model; None where no request is.
        max_bytes: size of a request, at most; None for the limit of the server.
        long_bytes: requests above this size are parsed outside the event loop.
    """

    service: str
    name: str
    request: str
    parse: Callable[[bytes], Request]
    work: Work[Request, Answer]
    encode: Callable[[Answer], bytes]
    role: Role | None
    refuse: Callable[[bytes, RequestError], bytes] | None = None
    ordered: bool = False
    by_run: ByRun | None = None
    max_bytes: int | None = None
    long_bytes: int = LONG_BYTES

    @property
    def path(self) -> str:
        """The path of the method in HTTP/2, such as "/digits.v1.DigitService/Recognize"."""
        return f"/{self.service}/{self.name}"
