import struct
import zlib

import numpy as np
import pytest

from serving.imaging.crop import frame_crop
from serving.imaging.decode import decode
from serving.imaging.headers import MAX_CHUNKS, MAX_SCANS, MAX_SIDE, CropError, parse_header
from serving.samples.photograph import encode
from tests.imaging.cases import read_case

GREY = np.add.outer(np.arange(90), np.arange(60)).astype(np.uint8)


def chunk(name: bytes, content: bytes) -> bytes:
    checked = name + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def with_chunks(content: bytes, *chunks: bytes) -> bytes:
    """Puts chunks behind the header of a PNG."""
    return content[:33] + b"".join(chunks) + content[33:]


def test_a_jpeg_of_many_scans_is_refused_before_decoding() -> None:
    with pytest.raises(CropError, match=f"more than {MAX_SCANS} scans: save it as a baseline JPEG, or as a PNG"):
        parse_header(read_case("2000_scans.jpg"))


def test_a_progressive_jpeg_is_decoded() -> None:
    content = encode(GREY, "JPEG", progressive=True, quality=95)
    assert content.count(b"\xff\xda") > 1
    assert np.abs(decode(content).astype(int) - GREY).mean() < 3


def test_texts_and_profiles_of_a_png_are_not_unpacked() -> None:
    bomb = zlib.compress(bytes(1 << 26))
    content = with_chunks(encode(GREY, "PNG"), chunk(b"zTXt", b"a\0\0" + bomb), chunk(b"iCCP", b"a\0\0" + bomb))
    header = parse_header(content)
    assert len(header.pixels) < len(content) - 2 * len(bomb)
    np.testing.assert_array_equal(decode(content), GREY)


@pytest.mark.parametrize(("width", "height"), [(2_000_000, 1), (1, 1_000_001)])
def test_a_png_with_a_side_beyond_the_limit_of_libpng_is_refused(width: int, height: int) -> None:
    content = encode(GREY, "PNG")
    header = struct.pack(">II", width, height) + content[24:29]
    with pytest.raises(CropError, match=f"the image is {width}x{height}, with more than 1,000,000 pixels a side"):
        parse_header(content[:8] + chunk(b"IHDR", header) + content[33:])


def test_a_png_with_a_side_at_the_limit_of_libpng_is_decoded(capfd: pytest.CaptureFixture[str]) -> None:
    assert decode(encode(np.full((1, MAX_SIDE), 9, np.uint8), "PNG")).shape == (1, MAX_SIDE)
    assert capfd.readouterr().err == ""


def test_a_png_of_too_many_chunks_is_refused() -> None:
    with pytest.raises(CropError, match="more than 4,096 chunks: save the picture again"):
        parse_header(with_chunks(encode(GREY, "PNG"), chunk(b"tEXt", b"a\0b") * MAX_CHUNKS))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encode(GREY, "PNG")[:20], "it ends within its headers"),
        (encode(GREY, "PNG")[:-30], "it has [0-9]+ bytes, its parts need"),
        (encode(GREY, "JPEG")[:-2], "the JPEG has no end"),
        (with_chunks(encode(GREY, "PNG")[:8]) + chunk(b"IDAT", b""), "a PNG starts with its header"),
    ],
    ids=["short-png", "cut-png", "cut-jpeg", "no-header"],
)
def test_a_broken_header_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(CropError, match=reason):
        parse_header(content)


def test_a_grey_png_with_one_transparent_level_shows_its_ink() -> None:
    grey = np.full((90, 60), 77, np.uint8)
    grey[20:70, 25:33] = 30
    content = with_chunks(encode(grey, "PNG"), chunk(b"tRNS", struct.pack(">H", 77)))
    framed = frame_crop(content)
    assert framed.whole
    np.testing.assert_array_equal(framed.image, frame_crop(encode(grey, "PNG")).image)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_without_an_orientation_leaves_the_picture_upright(order: str) -> None:
    mark = {"<": b"II", ">": b"MM"}[order]
    exif = mark + struct.pack(f"{order}HIHHHI4s", 42, 8, 1, 0x0100, 3, 1, b"\6\0\6\0") + bytes(4)
    turned = mark + struct.pack(f"{order}HIHHHIH2s", 42, 8, 1, 0x0112, 3, 1, 6, b"") + bytes(4)
    assert parse_header(with_chunks(encode(GREY, "PNG"), chunk(b"eXIf", exif))).orientation == 1
    assert parse_header(with_chunks(encode(GREY, "PNG"), chunk(b"eXIf", turned))).orientation == 6
    assert parse_header(with_chunks(encode(GREY, "PNG"), chunk(b"eXIf", turned[:15]))).orientation == 1
