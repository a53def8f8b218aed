import struct
import zlib

import numpy as np
import pytest

from serving.imaging.crop import frame_crop
from serving.imaging.decode import decode
from serving.imaging.headers import MAX_PARTS, MAX_SCANS, MAX_SIDE, CropError, parse_header
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
    with pytest.raises(CropError, match=r"more than [0-9]+ scans: save it as a baseline JPEG, or as a PNG"):
        parse_header(read_case("2000_scans.jpg"))


@pytest.mark.parametrize(("side", "scans"), [(90, MAX_SCANS), (1400, 12)])
def test_a_large_jpeg_may_have_fewer_scans_than_a_small_one(side: int, scans: int) -> None:
    content = encode(np.zeros((side, side), np.uint8), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    more = scans - content.count(b"\xff\xda")
    parse_header(content[:-2] + more * last + content[-2:])
    with pytest.raises(CropError, match=f"more than {scans} scans"):
        parse_header(content[:-2] + (more + 1) * last + content[-2:])


def test_scans_that_libjpeg_would_see_can_not_be_hidden() -> None:
    content = encode(GREY, "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    length = struct.pack(">H", 2 + 100 * len(scan))
    for hiding in (b"\xff\x01", b"\xff\xd8", b"\xff\xbf"):  # of these, only segments have a length
        with pytest.raises(CropError, match=r"has a marker FF[0-9A-F]{2}, which no picture has"):
            parse_header(content[:-2] + hiding + length + 100 * scan + content[-2:])
    with pytest.raises(CropError, match="more than 20 scans"):
        parse_header(content[:-2] + b"\xff\xd0" + length + 100 * scan + content[-2:])


@pytest.mark.parametrize("place", ["in front of a scan", "behind a scan"])
def test_a_jpeg_with_two_sizes_is_refused_before_decoding(place: str) -> None:
    content = encode(GREY, "JPEG", progressive=True)
    start = content.index(b"\xff\xc2")
    frame = content[start : start + 2 + struct.unpack_from(">H", content, start + 2)[0]]
    at = content.index(b"\xff\xda") if place == "in front of a scan" else len(content) - 2
    with pytest.raises(CropError, match="states its size twice"):
        parse_header(content[:at] + frame + content[at:])


def test_a_jpeg_of_a_rare_coding_is_refused_with_what_to_do() -> None:
    content = encode(GREY, "JPEG").replace(b"\xff\xc0", b"\xff\xc9")  # with arithmetic coding
    with pytest.raises(CropError, match="rare coding, FFC9: save it as a baseline JPEG, or as a PNG"):
        parse_header(content)


def test_a_jpeg_of_too_many_segments_is_refused() -> None:
    content = encode(GREY, "JPEG")
    with pytest.raises(CropError, match="more than 4,096 segments: save the picture again"):
        parse_header(content[:2] + b"\xff\xfe\0\2" * (MAX_PARTS + 1) + content[2:])


@pytest.mark.parametrize("length", [0, 1])
def test_a_segment_shorter_than_its_length_is_refused(length: int) -> None:
    content = encode(GREY, "JPEG")
    with pytest.raises(CropError, match="a segment FFFE of the JPEG is shorter than its own length"):
        parse_header(content[:2] + b"\xff\xfe\0" + bytes([length]) + content[2:])


@pytest.mark.parametrize("filler", [b"\xff", b"\xff\0", b"\xff\xd0"], ids=["fill", "stuffing", "restarts"])
def test_filler_between_markers_costs_time_that_grows_with_its_length_only(filler: bytes) -> None:
    long = filler * (1 << 20)  # with the square of its length, the time would be hours
    content = encode(GREY, "JPEG")
    for at in (2, len(content) - 2):
        with pytest.raises(CropError, match="the JPEG has no end"):
            parse_header(content[:at] + long + b"\0")
    assert parse_header(content[:-2] + long + content[-2:]).width == 60


@pytest.mark.parametrize("before", [65_534, 65_535, 65_536, 65_537])
def test_a_marker_is_found_wherever_the_search_is_resumed(before: int) -> None:
    content = encode(GREY, "JPEG")
    at = content.index(b"\xff\xda") + 2
    at += struct.unpack_from(">H", content, at)[0]
    rest = bytes(before) + b"\xff\xd9"
    assert parse_header(content[:at] + rest + bytes(before)).pixels[at:] == rest


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
        parse_header(with_chunks(encode(GREY, "PNG"), chunk(b"tEXt", b"a\0b") * MAX_PARTS))


def png_rows(width: int, height: int, *parts: bytes, interlaced: bool = False) -> bytes:
    """Encodes a grey PNG of 8 bits from its deflated rows, a chunk each."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)
    rows = b"".join(chunk(b"IDAT", part) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


def test_a_png_that_inflates_to_more_than_its_rows_is_refused_before_decoding() -> None:
    bomb = zlib.compress(bytes(100 << 20))
    message = "the PNG has more data than the [0-9,]+ bytes of its rows: save the picture again"
    for parts in ([bomb], [bomb[at : at + 1000] for at in range(0, len(bomb), 1000)]):
        with pytest.raises(CropError, match=message):
            parse_header(png_rows(64, 64, *parts))


def test_data_behind_the_end_of_the_rows_costs_nothing() -> None:
    rows = zlib.compress(bytes(65 * 64))
    assert parse_header(png_rows(64, 64, rows, *[bytes(1 << 16)] * 16)).width == 64


def test_rows_that_can_not_be_inflated_are_refused() -> None:
    with pytest.raises(CropError, match="its rows can't be inflated"):
        parse_header(png_rows(64, 64, b"\1" * 100_000))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("shape", [(1000, 1500), (1, 100_000), (300_000, 1)])
def test_a_large_png_of_incompressible_rows_is_decoded(shape: tuple[int, int], interlaced: bool) -> None:
    width, height = shape
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    random = np.random.default_rng(1)
    size = 0
    for left, top, across, down in passes if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -((left - width) // across), -((top - height) // down)
        size += rows * (columns + 1) if columns > 0 and rows > 0 else 0
    values = random.integers(0, 5, size, dtype=np.uint8)  # any value of 0 to 4 may begin a row
    content = png_rows(width, height, zlib.compress(values.tobytes(), 0), interlaced=interlaced)
    assert decode(content).shape == (height, width)


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
