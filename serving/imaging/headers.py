"""Headers of PNG and JPEG files: what a file would cost to decode, before any pixel is decoded."""

import re
import struct
from typing import NamedTuple

MAX_PIXELS = 1 << 21
MAX_SIDE = 1_000_000  # libpng's limit; its own refusal does not name the limit, and goes to the server's stderr
MAX_SCANS = 20  # of a JPEG; progressive files have about ten, and each costs a pass over all pixels
MAX_CHUNKS = 1 << 12  # of a PNG

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}  # texts and colour profiles may be bombs; none is needed
_FRAME_HEADERS = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # baseline, extended, progressive; the last two with arithmetic coding
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # within a scan, FF 00 is a byte and FF D0 to FF D7 are restarts
_ORIENTATION = 0x0112  # Exif tag


class CropError(Exception):
    """The file is not a crop that can be decoded; the message has the reason."""


class Header(NamedTuple):
    """What a file says about its picture.

    Attributes:
        width: columns as stored, before turning.
        height: rows as stored.
        channels: 1 for grey, else 3 or 4; 0 where only decoding tells.
        orientation: Exif orientation, 1 to 8; 1 is upright.
        transparent_grey: grey level that counts as transparent, or None.
        pixels: a file of the first picture alone, without anything that its pixels don't need.
    """

    width: int
    height: int
    channels: int
    orientation: int
    transparent_grey: int | None
    pixels: bytes


def parse_header(content: bytes) -> Header:
    """Parses the header of a PNG or JPEG, and checks what decoding would cost.

    Raises:
        CropError: the file is neither PNG nor JPEG, is broken, or would take too long to decode.
    """
    try:
        if content.startswith(_PNG):
            header = _parse_png(content)
        elif content.startswith(_JPEG):
            header = _parse_jpeg(content)
        else:
            raise CropError(f"neither a PNG nor a JPEG, but {len(content)} bytes of something else")
    except (struct.error, IndexError):
        raise CropError(f"the file is broken: it ends within its headers, after {len(content)} bytes") from None
    if not header.width or not header.height:
        raise CropError(f"the file is broken: its picture is {header.width}x{header.height}")
    if max(header.width, header.height) > MAX_SIDE:
        size = f"{header.width}x{header.height}, with more than {MAX_SIDE:,} pixels a side"
        raise CropError(f"the image is {size}: cut the digit out")
    if header.width * header.height > MAX_PIXELS:
        size = f"{header.width}x{header.height}, more than {MAX_PIXELS:,} pixels"
        raise CropError(f"the image is {size}: cut the digit out, or scale it down")
    return header


def _parse_png(content: bytes) -> Header:
    """Source: Portable Network Graphics Specification (Third Edition), W3C."""
    length, name = struct.unpack_from(">I4s", content, 8)
    if name != b"IHDR" or length != 13:
        raise CropError("the file is broken: a PNG starts with its header")
    width, height, _, colour = struct.unpack_from(">IIBB", content, 16)
    orientation, transparent = 1, None
    kept, at, chunks = [_PNG], 8, 0
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        chunks += 1
        if end > len(content):
            raise CropError(f"the file is broken: it has {len(content)} bytes, its parts need {end:,}")
        if chunks > MAX_CHUNKS:
            raise CropError(f"the PNG has more than {MAX_CHUNKS:,} chunks: save the picture again")
        if name in _PIXEL_CHUNKS:
            kept.append(content[at:end])
        if name == b"eXIf":
            orientation = _parse_orientation(content[at + 8 : end - 4])
        elif name == b"tRNS" and colour == 0 and length == 2:
            (transparent,) = struct.unpack_from(">H", content, at + 8)
        at = end
    return Header(width, height, 1 if colour == 0 else 0, orientation, transparent, b"".join(kept))


def _parse_jpeg(content: bytes) -> Header:
    """Walks the segments to the end of the first picture. Source: ITU-T T.81, annex B."""
    width = height = channels = scans = 0
    orientation, at = 1, 2
    while True:
        marker = _MARKER.match(content, at) if not scans else _MARKER.search(content, at)
        if marker is None:
            raise CropError("the file is broken: the JPEG has no end")
        code, at = marker[1][0], marker.end()
        if code == _END:
            break
        (length,) = struct.unpack_from(">H", content, at)
        if code in _FRAME_HEADERS:
            height, width, channels = struct.unpack_from(">HHB", content, at + 3)
        elif code == _APP1 and content[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _parse_orientation(content[at + 8 : at + length])
        elif code == _SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise CropError(f"the JPEG has more than {MAX_SCANS} scans: save it as a baseline JPEG, or as a PNG")
        at += length
    return Header(width, height, channels, orientation, None, content[:at])


def _parse_orientation(exif: bytes) -> int:
    """Returns the orientation that the first directory of Exif states, or 1. Source: CIPA DC-008, TIFF 6.0."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        if order is None:
            return 1
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * min(count, 100), 12):
            tag, kind, number = struct.unpack_from(f"{order}HHI", exif, entry)
            if tag == _ORIENTATION and kind == 3 and number == 1:
                (orientation,) = struct.unpack_from(f"{order}H", exif, entry + 8)
                return int(orientation) if 1 <= orientation <= 8 else 1
    except struct.error:
        pass  # the picture is there all the same
    return 1
