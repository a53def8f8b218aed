import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.cli.framed_files import read_framed
from serving.cli.main import main
from serving.client.image_files import ImageError
from serving.imaging.crop import frame_crop
from serving.samples.draw import SAMPLES, draw
from serving.samples.photograph import photograph

SEVEN = draw(7)


def save(image: Image.Image, file: Path) -> Path:
    image.save(file)
    return file


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("pixels", [SEVEN, 255 - SEVEN], ids=["light-on-dark", "dark-on-light"])
def test_png_and_raw_bytes_are_read_in_either_polarity(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(read_framed(save(Image.fromarray(pixels), tmp_path / "a.png")).image, SEVEN)
    raw = tmp_path / "a.raw"
    raw.write_bytes(pixels.tobytes())
    np.testing.assert_array_equal(read_framed(raw).image, SEVEN)


def test_a_jpeg_is_read_as_closely_as_jpeg_allows(tmp_path: Path) -> None:
    read = read_framed(save(Image.fromarray(255 - SEVEN), tmp_path / "a.jpg")).image
    assert np.abs(read.astype(int) - SEVEN).mean() < 8


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA", "I;16"])
def test_every_kind_of_png_is_read(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray((255 - SEVEN).astype(np.uint16) * 257)
    elif mode in ("RGBA", "LA"):  # black ink on nothing, as drawing programs save it
        ink = Image.new("L", (28, 28), 0)
        image = Image.merge("LA", (ink, Image.fromarray(SEVEN))).convert(mode)
    else:
        image = Image.fromarray(255 - SEVEN).convert(mode, dither=Image.Dither.NONE)
    tolerance = 128 if mode == "1" else 1
    assert np.abs(read_framed(save(image, tmp_path / "a.png")).image.astype(int) - SEVEN).max() <= tolerance


def test_a_photo_of_any_other_size_is_framed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = photograph(SEVEN, np.random.default_rng(1))
    photo, framed = tmp_path / "photo.jpg", tmp_path / "framed.png"
    photo.write_bytes(content)
    np.testing.assert_array_equal(read_framed(photo).image, frame_crop(content).image)
    assert main(["frame", str(photo), "--out", str(framed)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 28
    assert max(map(len, shown)) <= 56
    np.testing.assert_array_equal([bool(line.strip()) for line in shown], (read_framed(photo).image > 25).any(axis=1))
    np.testing.assert_array_equal(read_framed(framed).image, read_framed(photo).image)
    assert main(["frame", str(tmp_path / "none.jpg")]) == 1
    assert "none.jpg: No such file or directory" in capsys.readouterr().err


def test_light_ink_on_nothing_is_read_too(tmp_path: Path) -> None:
    image = Image.merge("LA", (Image.new("L", (28, 28), 255), Image.fromarray(SEVEN)))
    np.testing.assert_allclose(read_framed(save(image, tmp_path / "a.png")).image, SEVEN, atol=1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "but 0 bytes of something else"),
        (bytes(17 << 20), "more than 16,777,216 bytes"),
        (bytes(783), "but 783 bytes of something else"),
        (png(28, 29), "no ink is seen on it"),
        (png(20_000, 20_000), "more than 2,097,152 pixels"),
        (png(28, 28)[:-30], "."),
        (png(28, 28)[:40], "."),
        (b"GIF89a" + bytes(100), "something else"),
        (png(28, 28)[:28] + bytes(4) + png(28, 28)[32:], "."),
    ],
)
def test_a_file_that_can_not_be_framed_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        read_framed(file)


def test_the_first_of_several_framed_images_in_a_png_is_read(tmp_path: Path) -> None:
    file = tmp_path / "animated.png"
    Image.fromarray(255 - SEVEN).save(file, save_all=True, append_images=[Image.fromarray(SEVEN // 2)])
    np.testing.assert_array_equal(read_framed(file).image, SEVEN)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_framed(tmp_path / "none.png")


@pytest.mark.parametrize("content", [bytes(784), b"\xff" * 784, png(28, 28), png(30, 30)])
def test_a_blank_image_is_not_shown(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    blank, out = tmp_path / "blank.png", tmp_path / "framed.png"
    blank.write_bytes(content)
    assert main(["frame", str(blank), "--out", str(out)]) == 1
    assert capsys.readouterr() == ("", f"digits frame: {blank}: no ink is seen on it\n")
    assert not out.exists()


def test_a_framed_image_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "none" / "framed.png"
    assert main(["frame", str(SAMPLES / "photo.jpg"), "--out", str(out)]) == 1
    assert capsys.readouterr().err == f"digits frame: {out}: No such file or directory\n"
