"""Length-prefixed messages, as gRPC and gRPC-Web frame them, and their decompression.

A message is a byte of flags, its length in four bytes, and its content. Source: gRPC over HTTP/2.
"""

import struct
import zlib

from serving.errors import InvalidRequest, RequestError, TooLarge, Unsupported

PREFIX_BYTES = 5
_PREFIX = struct.Struct(">BI")
COMPRESSED = 1
"""The flag of a compressed message."""

ENCODINGS = b"identity, deflate, gzip"
"""The compressions of requests that the server reads, in the form of the header grpc-accept-encoding."""

_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}  # zlib's argument that selects the format


def frame(message: bytes, flags: int = 0) -> bytes:
    """Puts a prefix before a message."""
    return _PREFIX.pack(flags, len(message)) + message


def read_prefix(body: bytes | bytearray, max_bytes: int) -> tuple[int, int]:
    """Returns the flags and the length of the message that `body` begins with.

    Raises:
        TooLarge: the message is longer than `max_bytes`.
    """
    flags, size = _PREFIX.unpack_from(body)
    if size > max_bytes:
        raise TooLarge(f"the message is {size} bytes, this method takes {max_bytes}")
    return flags, size


def cut_message(part: bytearray, size: int) -> bytes:
    """Takes a message of `size` bytes and its prefix out of the start of `part`."""
    end = PREFIX_BYTES + size
    with memoryview(part)[PREFIX_BYTES:end] as content:
        message = bytes(content)
    del part[:end]
    return message


def read_only_message(body: bytes | bytearray, encoding: bytes, max_bytes: int) -> bytes:
    """Returns the one message of a unary request.

    Args:
        body: the whole body of the request.
        encoding: the compression that the headers name; b"" for none.
        max_bytes: length of the message, also decompressed, at most.

    Raises:
        RequestError: the body is not one message, is too large, or can't be decompressed.
    """
    if len(body) < PREFIX_BYTES:
        raise InvalidRequest(f"the request is {len(body)} bytes, which is not one whole message")
    flags, size = read_prefix(body, max_bytes)
    if len(body) != PREFIX_BYTES + size:
        raise InvalidRequest(f"the request has {len(body) - PREFIX_BYTES} bytes after its prefix, which announces {size}")
    with memoryview(body)[PREFIX_BYTES:] as content:  # a slice of a bytearray would be a second copy
        message = bytes(content)
    return decompress(message, encoding, max_bytes) if flags & COMPRESSED else message


def decompress(content: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """Decompresses a message.

    Raises:
        RequestError: the encoding is unknown, the content is damaged, or larger than `max_bytes` once decompressed.
    """
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise _unknown(encoding)
    decompressor = zlib.decompressobj(bits)
    try:
        message = decompressor.decompress(content, max_bytes + 1)
    except zlib.error:
        raise InvalidRequest(f"the message can't be decompressed as {encoding.decode()}") from None
    if len(message) > max_bytes:
        raise TooLarge(f"the message is over {max_bytes} bytes once decompressed, which is the limit")
    if not decompressor.eof:
        raise InvalidRequest(f"the message ends in the middle of its {encoding.decode()} data")
    return message


def _unknown(encoding: bytes) -> RequestError:
    if encoding in (b"", b"identity"):
        return InvalidRequest("the message is marked as compressed, but no header names its compression")
    return Unsupported(f"this server reads {ENCODINGS.decode()}, not the compression that the request names")
