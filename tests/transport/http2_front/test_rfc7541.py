"""RFC 7541, HPACK: the tables, integers, strings, and what can't be decoded, each an error of the connection."""

import pytest

from serving.process.server import Server
from tests.support.http2_client import END_HEADERS, END_STREAM, HEADERS, RST_STREAM, frame, header_block, literal
from tests.support.http2_wire import (
    CANCEL,
    COMPRESSION_ERROR,
    PROTOCOL_ERROR,
    Answered,
    Case,
    Fatal,
    Reset,
    call,
    check,
    headers,
    number,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLOCK = header_block()
BROKEN = Fatal(COMPRESSION_ERROR)
FIRST_DYNAMIC = b"\xbe"  # index 62
REMEMBERED = b"\x40" + literal(b"x-name", b"value")[1:]
NEVER_INDEXED = b"\x10" + literal(b"x-name", b"value")[1:]


def huffman(encoded: bytes) -> bytes:
    """Returns a header whose value is coded by Huffman's method."""
    return b"\0\x06x-name" + bytes([0x80 | len(encoded)]) + encoded


CASES = [
    Case(
        "2.3.2",
        "a header of the dynamic table",
        headers(1, BLOCK + REMEMBERED) + call(3, BLOCK + FIRST_DYNAMIC),
        Answered(3),
    ),
    Case(
        "2.3.2",
        "headers of a malformed request are in the table",
        headers(1, REMEMBERED) + call(3, BLOCK + FIRST_DYNAMIC),
        Reset(PROTOCOL_ERROR),
    ),
    Case("2.3.3", "index 0", headers(1, BLOCK + b"\x80"), BROKEN),
    Case("2.3.3", "an index above both tables", headers(1, BLOCK + FIRST_DYNAMIC), BROKEN),
    Case("2.3.3", "an index above both tables as a name", headers(1, BLOCK + b"\x7f\x1f" + b"\x01v"), BROKEN),
    Case("4.2", "a table of size 0, at the start of the block", call(1, b"\x20" + BLOCK), Answered()),
    Case("4.2", "two sizes of the table at the start", call(1, b"\x20\x3f\xe1\x1f" + BLOCK), Answered()),
    Case("4.2", "a size of the table after a header", headers(1, BLOCK + b"\x20"), BROKEN),
    Case(
        "4.2",
        "a table of size 0 forgets its headers",
        headers(1, BLOCK + REMEMBERED) + headers(3, b"\x20" + BLOCK + FIRST_DYNAMIC),
        BROKEN,
    ),
    Case(
        "4.4",
        "a header larger than the table empties it",
        headers(1, BLOCK + REMEMBERED + b"\x40" + literal(b"x-large", b"v" * 4096)[1:]) + headers(3, BLOCK + FIRST_DYNAMIC),
        BROKEN,
    ),
    Case("5.1", "an integer without an end", headers(1, BLOCK + b"\xff" + b"\xff" * 12), BROKEN),
    Case("5.1", "an integer cut off", headers(1, BLOCK + b"\xff"), BROKEN),
    Case("5.1", "an integer with leading zeros", call(1, b"\x20\x3f\xe1\x9f\x80\x00" + BLOCK), Answered()),
    Case("5.2", "a string longer than the block", headers(1, BLOCK + b"\0\x06x-name\x7evalue"), BROKEN),
    Case("5.2", "a value coded by Huffman's method", call(1, BLOCK + huffman(b"\xee\x3a\x2d\x2f")), Answered()),
    Case("5.2", "padding of Huffman's code of more than 7 bits", headers(1, BLOCK + huffman(b"\x1f\xff\xff")), BROKEN),
    Case("5.2", "padding of Huffman's code with zeros", headers(1, BLOCK + huffman(b"\x18")), BROKEN),
    Case("5.2", "Huffman's code with EOS", headers(1, BLOCK + huffman(b"\x1f\xff\xff\xff\xff\xff")), BROKEN),
    Case(
        "6.1",
        "an index of a name with an index of its value",
        call(1, b"\x83\x86" + BLOCK[len(literal(b":method", b"POST") + literal(b":scheme", b"http")) :]),
        Answered(),
    ),
    Case("6.2.3", "a header that is never indexed", call(1, BLOCK + NEVER_INDEXED), Answered()),
    Case("6.3", "a size of the table above ours", headers(1, b"\x3f\xe2\x1f" + BLOCK), BROKEN),
    Case("6.3", "a size of the table far above ours", headers(1, b"\x3f\xff\xff\xff\x0f" + BLOCK), BROKEN),
    Case("4.3", "trailers that can't be decoded", headers(1) + frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x80"), BROKEN),
    Case(
        "4.3",
        "headers of a closed stream are in the table",
        headers(1) + frame(RST_STREAM, 0, 1, number(CANCEL)) + headers(1, REMEMBERED) + call(3, BLOCK + FIRST_DYNAMIC),
        Answered(3),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_header_blocks_are_answered_as_the_rfc_says(wire_server: Server, case: Case) -> None:
    await check(wire_server.grpc_port, case)
