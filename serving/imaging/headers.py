"""Headers of PNG and JPEG files: what a file would cost to decode, before any pixel is decoded."""

import re
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

MAX_PIXELS = 1 << 21
MAX_SIDE = 1_000_000  # libpng's limit; its own refusal does not name the limit, and goes to the server's stderr
MAX_SCANS = 20  # of a JPEG; progressive files have about ten, and each costs a pass over all pixels
MAX_SCANNED_PIXELS = 12 * MAX_PIXELS  # scans times pixels of a JPEG: a scan may cost 30 ms of a picture of the largest size
MAX_PARTS = 1 << 12  # chunks of a PNG, segments of a JPEG

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}  # texts and colour profiles may be bombs; none is needed
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel of a PNG, by its colour type
_INFLATED_UNCHECKED = 1 << 26  # bytes that libpng may inflate in vain, which takes some 40 ms
_DEFLATE_RATIO = 1032  # bytes that one byte may inflate to, at most; source: zlib, "Technical Details"
_EXCESS = 1 << 16  # bytes that careless encoders may write behind the last row
_FRAME_HEADERS = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
# Other frames are lossless, hierarchical or arithmetic. No camera writes them, and they cost several times the work.
_RARE_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1
_LEADING_MARKER = re.compile(rb"\xff++([\xc0-\xcf\xd8-\xfe])")
# Within a scan, FF 00 is a byte and FF D0 to FF D7 are restarts. One FF is matched: with `\xff+`, a long run of them would
# take time that grows with the square of its length, in which no other thread runs.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_SEARCHED_AT_ONCE = 1 << 16  # bytes; a search lets no other thread run
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
    width, height, depth, colour = struct.unpack_from(">IIBB", content, 16)
    orientation, transparent = 1, None
    kept, rows, at, chunks = [_PNG], [], 8, 0
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        chunks += 1
        if end > len(content):
            raise CropError(f"the file is broken: it has {len(content)} bytes, its parts need {end:,}")
        if chunks > MAX_PARTS:
            raise CropError(f"the PNG has more than {MAX_PARTS:,} chunks: save the picture again")
        if name in _PIXEL_CHUNKS:
            kept.append(content[at:end])
        if name == b"IDAT":
            rows.append((at + 8, end - 4))
        elif name == b"eXIf":
            orientation = _parse_orientation(content[at + 8 : end - 4])
        elif name == b"tRNS" and colour == 0 and length == 2:
            (transparent,) = struct.unpack_from(">H", content, at + 8)
        at = end
    if width * height <= MAX_PIXELS:
        row_bytes = width * depth * _SAMPLES.get(colour, 4) // 8 + 2
        _check_inflated(content, rows, 2 * height * row_bytes)  # twice: the passes of an interlaced picture have more rows
    return Header(width, height, 1 if colour == 0 else 0, orientation, transparent, b"".join(kept))


def _check_inflated(content: bytes, parts: Sequence[tuple[int, int]], needed: int) -> None:
    """Refuses rows that inflate to much more than the `needed` bytes: libpng would inflate all, and then drop the rest.

    Args:
        content: the file.
        parts: where the deflated rows begin and end.
        needed: bytes of all rows, at most.
    """
    if sum(end - start for start, end in parts) * _DEFLATE_RATIO <= _INFLATED_UNCHECKED:
        return
    inflating, room = zlib.decompressobj(), needed + _EXCESS
    try:
        for start, end in parts:
            room -= len(inflating.decompress(content[start:end], room))
            if room <= 0:
                raise CropError(f"the PNG has more data than the {needed:,} bytes of its rows: save the picture again")
            if inflating.eof:  # libpng reads no further
                return
    except zlib.error:
        raise CropError("the file is broken: its rows can't be inflated") from None


def _parse_jpeg(content: bytes) -> Header:
    """Walks the segments to the end of the first picture. Source: ITU-T T.81, annex B.

    Segments are read exactly as libjpeg reads them. Otherwise a file could hide scans in what is no segment for one of them.
    """
    width = height = channels = scans = frames = segments = 0
    orientation, at = 1, 2
    while True:
        code, at = _next_marker(content, at, in_scan=scans > 0)
        if code == _END:
            break
        if 0x01 <= code < 0xC0 or code == 0xD8:
            raise CropError(f"the file is broken: the JPEG has a marker FF{code:02X}, which no picture has")
        segments += 1
        if segments > MAX_PARTS:
            raise CropError(f"the JPEG has more than {MAX_PARTS:,} segments: save the picture again")
        (length,) = struct.unpack_from(">H", content, at)
        if length < 2:
            raise CropError(f"the file is broken: a segment FF{code:02X} of the JPEG is shorter than its own length")
        if code in _RARE_FRAMES:
            raise CropError(f"the JPEG has a rare coding, FF{code:02X}: save it as a baseline JPEG, or as a PNG")
        if code in _FRAME_HEADERS:
            frames += 1
            if frames > 1:
                raise CropError("the file is broken: the JPEG states its size twice")
            height, width, channels = struct.unpack_from(">HHB", content, at + 3)
        elif code == _APP1 and content[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _parse_orientation(content[at + 8 : at + length])
        elif code == _SCAN:
            scans += 1
            most = min(MAX_SCANS, MAX_SCANNED_PIXELS // min(max(width * height, 1), MAX_PIXELS))
            if scans > most:
                raise CropError(f"the JPEG has more than {most} scans: save it as a baseline JPEG, or as a PNG")
        at += length
    return Header(width, height, channels, orientation, None, content[:at])


def _next_marker(content: bytes, at: int, *, in_scan: bool) -> tuple[int, int]:
    """Finds the next marker; in a scan, behind the coded pixels. Returns its code and the place behind it.

    Raises:
        CropError: there is none.
    """
    found = None if in_scan else _LEADING_MARKER.match(content, at)
    while in_scan and found is None and at < len(content):
        found = _MARKER.search(content, at, at + _SEARCHED_AT_ONCE + 1)  # a marker may begin with the last byte
        at += _SEARCHED_AT_ONCE
    if found is None:
        raise CropError("the file is broken: the JPEG has no end")
    return found[1][0], found.end()


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
