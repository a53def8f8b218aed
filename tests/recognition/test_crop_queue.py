import asyncio
import io
import math
import struct
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.errors import DeadlineExceeded, QueueFull, Stopping
from serving.imaging.decode import MAX_PIXELS, CropError, decode, frame_crop
from serving.imaging.framing import frame
from serving.imaging.ink import find_ink
from serving.inference.model import Model
from serving.recognition import crop_queue
from serving.recognition.crop_queue import CropQueue
from serving.samples.photograph import cut_out, encode, photograph
from serving.telemetry.metrics import Metrics
from tests.support.metrics import value

Images = NDArray[np.uint8]


def read(model: Model, images: list[Images]) -> NDArray[np.intp]:
    digits: NDArray[np.intp] = model.predict(np.stack(images)).argmax(axis=1)
    return digits


@pytest.mark.parametrize(
    ("what", "least"),
    [({}, 0.985), ({"light_ink": True}, 0.985), ({"specks": 4}, 0.98), ({"lines": 1}, 0.96), ({"lines": 2}, 0.94)],
    ids=["dark-ink", "light-ink", "specks", "a-line", "two-lines"],
)
def test_photographs_are_read_as_the_images_that_they_show(
    what: dict[str, Any], least: float, model: Model, images: Images
) -> None:
    random = np.random.default_rng(1)
    framed = [frame_crop(photograph(image, random, **what)) for image in images[:400]]
    assert (read(model, framed) == read(model, list(images[:400]))).mean() >= least


def test_a_digit_that_is_cut_out_closely_is_read_too(model: Model, images: Images) -> None:
    random = np.random.default_rng(1)
    framed = [frame_crop(cut_out(image, random)) for image in images[:400]]
    assert (read(model, framed) == read(model, list(images[:400]))).mean() >= 0.98


def test_framing_an_image_of_mnist_again_hardly_ever_changes_what_is_read(model: Model, mnist_path: object) -> None:
    test: Images = np.load(str(mnist_path))["x_test"]
    again = [frame(find_ink(image)) for image in test]
    assert (read(model, again) != read(model, list(test))).mean() < 0.003


def test_digits_of_another_source_are_read_when_enlarged_and_framed(model: Model) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    source = datasets.load_digits()
    paper = np.full((120, 120), 255, np.uint8)
    framed = []
    for image in source.images:
        small = Image.fromarray((255 - image / 16 * 255).astype(np.uint8))
        paper[12:108, 12:108] = np.asarray(small.resize((96, 96), Image.Resampling.BICUBIC))
        framed.append(frame_crop(encode(paper, "PNG")))
    assert (read(model, framed) == source.target).mean() >= 0.95


@pytest.mark.parametrize("noise", [0, 4, 12])
def test_paper_without_ink_gives_an_image_without_ink(noise: float) -> None:
    random = np.random.default_rng(1)
    light = np.add.outer(np.linspace(150, 200, 90), np.linspace(0, 40, 60))
    paper = np.clip(light + random.normal(0, noise, light.shape), 0, 255).astype(np.uint8)
    assert not frame_crop(encode(paper, "PNG")).any()


def test_a_ruling_line_is_dropped_and_a_digit_as_straight_as_one_is_not() -> None:
    paper = np.full((90, 60), 200, np.uint8)
    paper[20:70, 28:34] = 40  # a 1
    alone = find_ink(paper)
    paper[78:80] = 90
    np.testing.assert_allclose(find_ink(paper), alone, atol=1e-6)
    one = np.full((90, 12), 200, np.uint8)
    one[:, 5:7] = 40
    assert find_ink(one)[:, 5:7].min() > 0.9


def test_photos_of_any_shape_and_content_end_well() -> None:
    random = np.random.default_rng(1)
    sides = (1, 2, 3, 5, 6, 7, 11, 28, 81)
    for height in sides:
        for width in sides:
            for photo in (
                np.zeros((height, width)),
                random.integers(0, 256, (height, width)),
                np.add.outer(np.arange(height), np.arange(width)),
                np.indices((height, width)).sum(axis=0) % 2 * 255,
            ):
                ink = find_ink(photo.astype(np.uint8))
                assert ink.shape == (height, width)
                assert ((ink >= 0) & (ink <= 1)).all()
                assert frame(ink).shape == (28, 28)


def of_mode(grey: Images, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):  # black ink on nothing
        return Image.merge("LA", (Image.new("L", grey.shape[::-1], 0), Image.fromarray(255 - grey))).convert(mode)
    return Image.fromarray(grey).convert(mode, dither=Image.Dither.NONE)


def test_a_jpeg_in_the_colours_of_printers_is_read(images: Images) -> None:
    grey = 255 - np.kron(images[0], np.ones((3, 3), np.uint8))
    content = io.BytesIO()
    Image.fromarray(grey).convert("CMYK").save(content, "JPEG", quality=95)
    assert np.abs(decode(content.getvalue()).astype(int) - grey).mean() < 4


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_every_kind_of_png_gives_the_same_grey(mode: str, images: Images) -> None:
    grey = 255 - np.kron(images[0], np.ones((3, 3), np.uint8))
    content = io.BytesIO()
    of_mode(grey, mode).save(content, "PNG")
    np.testing.assert_allclose(decode(content.getvalue()), grey, atol=1)
    np.testing.assert_allclose(frame_crop(content.getvalue()).astype(int), frame_crop(encode(grey, "PNG")), atol=8)


def test_a_photo_is_turned_as_its_camera_was_held(images: Images) -> None:
    grey = 255 - np.kron(images[0], np.ones((3, 2), np.uint8))
    lying = Image.fromarray(grey).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was turned to the left
    content = io.BytesIO()
    lying.save(content, "JPEG", quality=95, exif=exif)
    assert np.abs(decode(content.getvalue()).astype(int) - grey).mean() < 3


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG that says it is of this size, whatever is in it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def animated() -> bytes:
    content = io.BytesIO()
    first, second = (Image.new("L", (30, 30), grey) for grey in (0, 200))
    first.save(content, "PNG", save_all=True, append_images=[second])
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither a PNG nor a JPEG, but 0 bytes of something else"),
        (b"GIF89a" + bytes(100), "neither a PNG nor a JPEG, but 106 bytes"),
        (png(2048, 1025), f"the image is 2048x1025, more than {MAX_PIXELS:,} pixels: cut the digit out, or scale it down"),
        (png(50_000, 50_000), "more than 2,097,152 pixels"),
        (png(2**31 - 1, 2**31 - 1), "more than 2,097,152 pixels"),
        (png(100, 100, bytes(50)), "the file is broken"),
        (animated(), "the file holds several images"),
        (encode(np.zeros((90, 60), np.uint8), "JPEG")[:200], "the file is broken"),
    ],
    ids=["empty", "gif", "large", "bomb", "absurd", "truncated-png", "animated", "truncated-jpeg"],
)
def test_what_is_no_crop_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(CropError) as refusal:
        frame_crop(content)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_spoilt_file_is_read_or_refused_and_nothing_else(form: str, images: Images) -> None:
    random = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8825] = 3, "a camera", {1: "N", 2: (1.0, 2.0, 3.0)}
    content = io.BytesIO()
    Image.open(io.BytesIO(photograph(images[0], random))).save(content, form, exif=exif)
    whole, head = content.getvalue(), content.getvalue().find(b"a camera") + 60
    refused = 0
    for turn in range(1000):
        spoilt = np.frombuffer(whole, np.uint8).copy()
        within = head if turn % 2 else len(spoilt)
        spoilt[random.integers(0, within, 3)] = random.integers(0, 256, 3)
        try:
            frame_crop(spoilt[: random.integers(1, 2 * len(spoilt))].tobytes())
        except CropError:
            refused += 1
    assert refused > 100


async def test_crops_are_framed_in_order_and_what_cannot_be_read_is_told(images: Images) -> None:
    random = np.random.default_rng(1)
    files = [photograph(image, random) for image in images[:70]]
    expected = [frame_crop(file) for file in files]
    files[40], expected[40] = b"no picture", np.zeros((28, 28), np.uint8)
    metrics = Metrics()
    framer = CropQueue(1000, metrics)
    pixels, troubles = await framer.frame(files, math.inf)
    np.testing.assert_array_equal(np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28), expected)
    assert troubles == {40: "neither a PNG nor a JPEG, but 10 bytes of something else"}
    assert value(metrics.registry, "digits_framing_seconds_count") == 70
    await framer.close(1)
    with pytest.raises(Stopping):
        await framer.frame([b""], math.inf)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many crops were framed at a time, each time taking a while."""
    framed: list[int] = []
    frame_all = crop_queue._frame_all

    def slowly(part: Sequence[bytes]) -> list[tuple[bytes, str, float]]:
        framed.append(len(part))
        time.sleep(0.05)
        return frame_all(part)

    monkeypatch.setattr(crop_queue, "_frame_all", slowly)
    return framed


async def test_no_more_crops_wait_than_may_and_none_is_framed_for_nobody(slow: list[int]) -> None:
    metrics = Metrics()
    framer = CropQueue(100, metrics)
    first = asyncio.create_task(framer.frame([b"no picture"] * 100, math.inf))
    await asyncio.sleep(0)
    assert value(metrics.registry, "digits_crops_waiting") == 100
    with pytest.raises(QueueFull, match="100 crops wait to be framed, and there is no room for 1 more") as full:
        await framer.frame([b""], math.inf)
    assert full.value.retry_after_seconds
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(DeadlineExceeded):
        await framer.frame([b""] * 70, time.monotonic() + 0.01)
    assert sum(slow) <= 4 + 4, "what nobody waits for is left"
    _, troubles = await framer.frame([b""], math.inf)
    assert list(troubles) == [0]
    assert value(metrics.registry, "digits_crops_waiting") == 0
    await framer.close(1)


async def test_calls_with_crops_take_turns(slow: list[int]) -> None:
    framer = CropQueue(1000, Metrics())
    many = asyncio.create_task(framer.frame([b""] * 40, math.inf))
    await asyncio.sleep(0)
    await framer.frame([b""], math.inf)
    assert len(slow) <= 4, "one crop waits for a few of the forty, not for all"
    many.cancel()
    await framer.close(1)


async def test_more_bytes_than_may_wait_are_refused(slow: list[int]) -> None:
    framer = CropQueue(1000, Metrics())
    large = bytes(1 << 26)
    first = asyncio.create_task(framer.frame([large, large], math.inf))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await framer.frame([b"x"], math.inf)
    await first
    await framer.close(1)


async def test_crops_that_take_longer_than_the_grace_end_as_stopping(slow: list[int]) -> None:
    framer = CropQueue(1000, Metrics())
    running, waiting = (asyncio.create_task(framer.frame([b""] * 20, math.inf)) for _ in range(2))
    await asyncio.sleep(0)
    await framer.close(0.01)
    for call in (running, waiting):
        with pytest.raises(Stopping):
            await call
    with pytest.raises(Stopping):
        await framer.frame([b""], math.inf)
