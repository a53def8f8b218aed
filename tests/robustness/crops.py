"""Image files that are expensive to decode, or that unpack to far more."""

import asyncio
import struct
import zlib
from collections import Counter
from functools import cache

import numpy as np

from serving.imaging.headers import MAX_SCANS
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.samples.photograph import encode
from tests.robustness.attacker import DIGITS, connected, outcome
from tests.robustness.case import GRPCIO, Case, Limits
from tests.robustness.target import Target
from tests.support.http2_client import grpc_message

_SIDE = 1400
"""Of a square image close to the limit of two million pixels."""

_RIGHT = frozenset({"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
_SCAN = b"\xff\xda\x00\x08\x01\x01\x00"


def scans(count: int, side: int = _SIDE) -> bytes:
    """Makes a progressive JPEG of so many scans, by repeating the last of its own scans."""
    random = np.random.default_rng(1)
    whole = encode(random.integers(0, 256, (side, side)).astype(np.uint8), "JPEG", progressive=True, quality=60)
    last = whole.rfind(b"\xff\xda")
    return whole[:last] + whole[last:-2] * max(1, count - whole.count(b"\xff\xda") + 1) + whole[-2:]


def _empty_scans(size: int, side: int = _SIDE) -> bytes:
    """Makes a JPEG whose scans hold next to nothing, as many as fit; a decoder visits every block in each of them."""
    whole = encode(np.full((side, side), 255, np.uint8), "JPEG", progressive=True)
    first = whole.find(b"\xff\xda")
    scan = _SCAN + b"\x00\x00\x01\x00"  # of the first coefficient, refined by one bit
    return whole[:first] + scan * (size // len(scan)) + b"\xff\xd9"


def chunk(name: bytes, content: bytes) -> bytes:
    """Encodes a chunk of a PNG. Source: PNG specification, 5.3."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, pixels: bytes, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """Encodes a PNG whose header may not fit its packed pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


@cache
def _packed(megabytes: int) -> bytes:
    """Packs zeros."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def _exif(entries: int, kind: int, count: int) -> bytes:
    """Encodes EXIF whose entries claim `count` values each."""
    body = b"".join(struct.pack(">HHII", 1000 + number, kind, count, 8) for number in range(entries))
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", entries) + body


def _with_exif(exif: bytes) -> bytes:
    jpeg = encode(np.full((60, 50), 255, np.uint8), "JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def hostile_files() -> dict[str, bytes]:
    """Makes the files that the suite sends, by name."""
    small, jpeg = zlib.compress(bytes(20 * 21)), encode(np.full((60, 50), 255, np.uint8), "JPEG")
    gigabyte = _packed(1024)
    table = b"\xff\xdb\0C\0" + b"\1" * 64
    return {
        "JPEG of too many scans": scans(MAX_SCANS * 100, 200),
        "JPEG of as many scans as are allowed": scans(MAX_SCANS),
        "JPEG of 600 kB of empty scans": _empty_scans(600_000),
        "JPEG of 3 MB of empty scans": _empty_scans(3_000_000),
        "JPEG of 900,000 segments": b"\xff\xd8" + b"\xff\xe1\x00\x02" * 900_000,
        "JPEG of 50,000 tables": jpeg[:2] + table * 50_000 + jpeg[2:],
        "JPEG of 5,000 odd EXIF entries": _with_exif(_exif(5000, 2, 0x7FFF0000)),
        "JPEG whose EXIF refers to itself": _with_exif(_exif(3, 4, 1)),
        "PNG that unpacks to a gigabyte": png(_SIDE, _SIDE, gigabyte),
        "PNG with a text of a gigabyte": png(20, 20, small, chunk(b"zTXt", b"a\0\0" + gigabyte)),
        "PNG with a profile of a gigabyte": png(20, 20, small, chunk(b"iCCP", b"a\0\0" + gigabyte)),
        "PNG of 150,000 texts": png(20, 20, small, chunk(b"tEXt", b"k\0v") * 150_000),
        "PNG of 250,000 empty parts": png(20, 20, small, chunk(b"IDAT", b"") * 250_000),
        "PNG of four billion pixels": png(65535, 65535, _packed(64)),
        "PNG of negative sides": png(2**31, 2**31, small),
        "PNG of no pixels": png(0, 0, b""),
        "PNG of 16 bits in four channels": png(_SIDE, _SIDE, _packed(16), depth=16, colour=6),
        "PNG of noise": encode(np.random.default_rng(2).integers(0, 256, (_SIDE, _SIDE)).astype(np.uint8), "PNG"),
    }


async def _each(target: Target) -> Counter[str]:
    """Sends each file once, beside a good crop."""
    async with connected(target.port) as client:
        ended = Counter[str]()
        for content in hostile_files().values():
            response = client.send(f"{DIGITS}/Recognize", _crop(content), grpc_timeout="5S")[1]
            ended[await outcome(response)] += 1
    return ended


async def _many(target: Target) -> Counter[str]:
    """Sends the most expensive of the allowed files all the time, 32 at once, with deadlines of a second."""
    dear = [
        _crop(scans(MAX_SCANS)),
        _crop(hostile_files()["PNG of noise"]),
        _crop(hostile_files()["PNG of 16 bits in four channels"]),
    ]
    ended: Counter[str] = Counter()
    async with connected(target.port) as client:

        async def send(number: int) -> None:
            for turn in range(3):
                response = client.send(f"{DIGITS}/Recognize", dear[(number + turn) % len(dear)], grpc_timeout="1S")[1]
                ended[await outcome(response)] += 1

        await asyncio.gather(*[send(number) for number in range(32)])
    return ended


async def _in_batches(target: Target) -> Counter[str]:
    """Sends batches of many crops: cheap, empty and expensive ones."""
    crop, dear = encode(np.full((60, 50), 200, np.uint8), "PNG"), scans(MAX_SCANS, 400)
    batches = [[crop] * 10_000, [b""] * 10_000, [b"x"] * 9_999, [dear] * (3_500_000 // len(dear))]
    ended: Counter[str] = Counter()
    async with connected(target.port) as client:
        for crops in batches:
            message = grpc_message(pb.RecognizeBatchRequest(crops=crops).SerializeToString())
            ended[await outcome(client.send(f"{DIGITS}/RecognizeBatch", message, grpc_timeout="2S")[1])] += 1
    return ended


async def then_stops(target: Target) -> Counter[str]:
    """Sends SIGTERM to the service while the most expensive files are decoded. It must stop within its times."""
    async with connected(target.port) as client:
        for content in (_empty_scans(3_000_000), scans(MAX_SCANS)) * 8:
            client.send(f"{DIGITS}/Recognize", _crop(content), grpc_timeout="1S")
        await asyncio.sleep(0.5)
        return Counter([await asyncio.to_thread(target.stop, 15)])


def _crop(content: bytes) -> bytes:
    return grpc_message(pb.RecognizeRequest(crop=content).SerializeToString())


# The C library keeps some 140 MB in the arenas of the threads that decode and run, and no more after more crops.
_HTTP2 = Limits(peak_megabytes=500.0, kept_megabytes=170.0)

CASES = (
    Case("files that are hard to decode", _each, _RIGHT, fronts=("http2",)),
    Case("files that are hard to decode", _each, _RIGHT, fronts=("grpcio",), limits=GRPCIO),
    Case("many expensive files at once", _many, _RIGHT, fronts=("http2",), limits=_HTTP2),
    Case("many expensive files at once", _many, _RIGHT, fronts=("grpcio",), limits=GRPCIO),
    Case("batches of many crops", _in_batches, _RIGHT, fronts=("http2",)),
)
