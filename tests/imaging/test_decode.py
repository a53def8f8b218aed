import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.imaging.crop import frame_crop
from serving.imaging.decode import decode
from serving.imaging.framing import frame
from serving.imaging.headers import MAX_PIXELS, CropError
from serving.imaging.ink import find_ink
from serving.inference.classifier import Classifier
from serving.samples.photograph import encode, photograph
from tests.support.drawings import cut_out

Images = NDArray[np.uint8]


def recognize(model: Classifier, images: list[Images]) -> NDArray[np.intp]:
    digits: NDArray[np.intp] = model.predict(np.stack(images)).argmax(axis=1)
    return digits


@pytest.mark.parametrize(
    ("options", "least"),
    [({}, 0.985), ({"light_ink": True}, 0.985), ({"specks": 4}, 0.98), ({"lines": 1}, 0.96), ({"lines": 2}, 0.94)],
    ids=["dark-ink", "light-ink", "specks", "a-line", "two-lines"],
)
def test_photographs_are_recognized_as_the_digits_on_them(
    options: dict[str, Any], least: float, model: Classifier, images: Images
) -> None:
    random = np.random.default_rng(1)
    framed = [frame_crop(photograph(image, random, **options)).image for image in images[:400]]
    assert (recognize(model, framed) == recognize(model, list(images[:400]))).mean() >= least


def test_digits_cut_out_without_a_margin_are_recognized(model: Classifier, images: Images) -> None:
    random = np.random.default_rng(1)
    framed = [frame_crop(cut_out(image, random)).image for image in images[:400]]
    assert (recognize(model, framed) == recognize(model, list(images[:400]))).mean() >= 0.98


def test_framing_mnist_images_changes_hardly_any_answer(model: Classifier, mnist_path: Path) -> None:
    with np.load(mnist_path) as arrays:
        images: Images = arrays["x_test"]
    framed = [frame(find_ink(image).cover) for image in images]
    assert (recognize(model, framed) != recognize(model, list(images))).mean() < 0.003


def test_enlarged_digits_of_another_data_set_are_recognized(model: Classifier) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    source = datasets.load_digits()
    paper = np.full((120, 120), 255, np.uint8)
    framed = []
    for image in source.images:
        small = Image.fromarray((255 - image / 16 * 255).astype(np.uint8))
        paper[12:108, 12:108] = np.asarray(small.resize((96, 96), Image.Resampling.BICUBIC))
        framed.append(frame_crop(encode(paper, "PNG")).image)
    assert (recognize(model, framed) == source.target).mean() >= 0.95


def convert(grey: Images, mode: str) -> Image.Image:
    """Converts (height, width) uint8 grey levels to a colour mode of Pillow; with transparency, as black ink on nothing."""
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):
        return Image.merge("LA", (Image.new("L", grey.shape[::-1], 0), Image.fromarray(255 - grey))).convert(mode)
    return Image.fromarray(grey).convert(mode, dither=Image.Dither.NONE)


def test_a_jpeg_in_cmyk_is_decoded_to_grey(images: Images) -> None:
    grey = 255 - np.kron(images[0], np.ones((3, 3), np.uint8))
    content = io.BytesIO()
    Image.fromarray(grey).convert("CMYK").save(content, "JPEG", quality=95)
    assert np.abs(decode(content.getvalue()).astype(int) - grey).mean() < 4


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_png_of_any_colour_mode_is_decoded_to_the_same_grey(mode: str, images: Images) -> None:
    grey = 255 - np.kron(images[0], np.ones((3, 3), np.uint8))
    content = io.BytesIO()
    convert(grey, mode).save(content, "PNG")
    np.testing.assert_allclose(decode(content.getvalue()), grey, atol=1)
    np.testing.assert_allclose(
        frame_crop(content.getvalue()).image.astype(int), frame_crop(encode(grey, "PNG")).image, atol=8
    )


def test_a_photo_is_turned_upright_by_its_exif_orientation(images: Images) -> None:
    grey = 255 - np.kron(images[0], np.ones((3, 2), np.uint8))
    lying = Image.fromarray(grey).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was turned to the left
    content = io.BytesIO()
    lying.save(content, "JPEG", quality=95, exif=exif)
    assert np.abs(decode(content.getvalue()).astype(int) - grey).mean() < 3


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """Encodes a PNG file whose header states a size that its content need not have."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_the_first_of_several_pictures_in_a_file_is_decoded() -> None:
    first, second = (Image.new("L", (30, 30), grey) for grey in (10, 200))
    for form, options in (("PNG", {}), ("MPO", {"quality": 95})):
        content = io.BytesIO()
        first.save(content, form, save_all=True, append_images=[second], **options)
        np.testing.assert_allclose(decode(content.getvalue()), np.full((30, 30), 10), atol=2)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_stored_in_sixteen_are_stretched(bits: int) -> None:
    grey = np.linspace(0, 2**bits - 1, 6000).reshape(100, 60)
    decoded = decode(encode(grey.astype(np.uint16), "PNG"))
    np.testing.assert_allclose(decoded, grey / (2**bits - 1) * 255, atol=1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither a PNG nor a JPEG, but 0 bytes of something else"),
        (b"GIF89a" + bytes(100), "neither a PNG nor a JPEG, but 106 bytes"),
        (png(2048, 1025), f"the image is 2048x1025, more than {MAX_PIXELS:,} pixels: cut the digit out, or scale it down"),
        (png(50_000, 50_000), "more than 2,097,152 pixels"),
        (png(2**31 - 1, 2**31 - 1), "more than 1,000,000 pixels a side"),
        (png(100, 100, bytes(50)), "the file is broken"),
        (encode(np.zeros((90, 60), np.uint8), "JPEG")[:200], "the file is broken"),
    ],
    ids=["empty", "gif", "large", "bomb", "absurd", "truncated-png", "truncated-jpeg"],
)
def test_a_file_that_is_not_a_crop_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(CropError) as refusal:
        frame_crop(content)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_damaged_file_is_decoded_or_refused_without_another_error(form: str, images: Images) -> None:
    random = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8825] = 3, "a camera", {1: "N", 2: (1.0, 2.0, 3.0)}
    content = io.BytesIO()
    Image.open(io.BytesIO(photograph(images[0], random))).save(content, form, exif=exif)
    whole, head = content.getvalue(), content.getvalue().find(b"a camera") + 60
    refused = 0
    for turn in range(1000):
        damaged = np.frombuffer(whole, np.uint8).copy()
        within = head if turn % 2 else len(damaged)
        damaged[random.integers(0, within, 3)] = random.integers(0, 256, 3)
        try:
            frame_crop(damaged[: random.integers(1, 2 * len(damaged))].tobytes())
        except CropError:
            refused += 1
    assert refused > 100
