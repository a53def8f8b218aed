import mmap
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image, ImageOps

from serving.client import Decision, DigitClient, Recognition, Refusal
from serving.client.image_files import ImageError, read_image
from serving.samples.draw import SAMPLES, draw
from serving.samples.photograph import photograph
from tests.support.calls import TIMEOUT
from tests.support.service import service

SEVEN = draw(7)

# Orientation 6, and a resolution that is text. Pillow reads the tags, but can't write them again.
ODD_EXIF = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHHHI4sI", 8, 2, 0x0112, 3, 1, 6, 0, 0x011A, 2, 1, b"1\0\0\0", 0)


@pytest.fixture(scope="module")
def client() -> Iterator[DigitClient]:
    """A client of a real server."""
    with service("--workers", "1") as server, DigitClient(server.address, TIMEOUT) as connected:
        yield connected


@pytest.fixture
def content() -> bytes:
    """A photograph of a seven."""
    return photograph(SEVEN, np.random.default_rng(1))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, "strided", "mmap"])
def test_a_crop_of_any_bytes_like_type_is_recognized(client: DigitClient, content: bytes, kind: Any, tmp_path: Path) -> None:
    if kind == "mmap":
        (tmp_path / "crop.jpg").write_bytes(content)
        with (tmp_path / "crop.jpg").open("rb") as file:
            crop: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    elif kind == "strided":
        crop = memoryview(np.repeat(np.frombuffer(content, np.uint8), 2).tobytes())[::2]
    else:
        crop = kind(content)
    assert client.recognize(crop).digit == 7
    assert [one.digit for one in client.recognize_batch([crop, crop])] == [7, 7]
    assert client.read_field(iter([crop, crop])).value == "77"
    (answer,) = (one for _, one in client.recognize_stream([crop]))
    assert isinstance(answer, Recognition)
    assert answer.digit == 7


def test_an_empty_crop_of_a_batch_is_rejected_alone(client: DigitClient, content: bytes) -> None:
    answers = client.recognize_batch([content, b"", content])
    assert [one.decision is Decision.REJECT_INVALID_IMAGE for one in answers] == [False, True, False]
    assert [answers[0].digit, answers[2].digit] == [7, 7]
    assert "0 bytes" in answers[1].trouble
    field = client.read_field([content, b"", content])
    assert list(field.troubles) == [1]
    assert field.decision is Decision.REJECT_INVALID_IMAGE


def test_every_read_takes_a_priority_and_explains_a_wrong_one(client: DigitClient, content: bytes) -> None:
    for priority in ("live", "batch"):
        assert client.recognize(SEVEN, priority=priority).digit == 7
        assert client.recognize_batch([content], priority=priority)[0].digit == 7
        assert client.read_field([content], priority=priority).value == "7"
        assert [index for index, _ in client.recognize_stream([SEVEN], priority=priority)] == [0]
    reads: list[tuple[Any, Any]] = [
        (client.recognize, content),
        *[(read, [content]) for read in (client.recognize_batch, client.read_field, client.recognize_stream)],
    ]
    for read, images in reads:
        with pytest.raises(ValueError, match="priority is 'urgent', expected 'live' or 'batch'"):
            list(read(images, priority="urgent"))


def test_an_empty_crop_of_a_stream_gets_an_error_alone(client: DigitClient, content: bytes) -> None:
    outcomes = dict(client.recognize_stream([content, b"", content, bytearray(), SEVEN]))
    assert sorted(outcomes) == [0, 1, 2, 3, 4]
    assert [one.digit for one in outcomes.values() if isinstance(one, Recognition)] == [7, 7, 7]
    for index in (1, 3):
        refusal = outcomes[index]
        assert isinstance(refusal, Refusal)
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "image is an empty crop, expected" in refusal.reason


def test_an_empty_crop_of_a_live_stream_gets_its_error_at_once(client: DigitClient) -> None:
    answered = threading.Event()

    def camera() -> Iterator[bytes]:
        yield b""
        assert answered.wait(TIMEOUT)

    stream = client.recognize_stream(camera())
    index, outcome = next(stream)
    answered.set()
    assert index == 0
    assert isinstance(outcome, Refusal)
    assert list(stream) == []


def test_an_empty_crop_alone_is_explained(client: DigitClient) -> None:
    for crop in (b"", bytearray(), memoryview(b"")):
        with pytest.raises(ValueError, match="image is an empty crop, expected one image"):
            client.recognize(crop)


BATCH = SEVEN[None]

WRONG_IMAGES: list[tuple[Any, type[Exception], str]] = [
    ("7.png", TypeError, "image has type str, .*read the file first"),
    (SAMPLES / "7.png", TypeError, "image has type PosixPath, .*read the file first"),
    (None, TypeError, "image has type NoneType, expected one image"),
    (SEVEN.tolist(), TypeError, "image has type list, expected one image"),
    (SEVEN / np.float32(255), ValueError, r"dtype float32.*from 0 to 1, convert with np.round\(images \* 255\)"),
    (SEVEN.astype(float), ValueError, r"dtype float64.*convert with np.round\(images\).astype"),
    (SEVEN.astype(np.int64), ValueError, "dtype int64"),
    (SEVEN.astype(np.int64) - 1, ValueError, "range from -1 to 254, outside 0"),
    (np.full((28, 28), np.nan), ValueError, "range from nan to nan, outside 0"),
    (SEVEN > 0, ValueError, "dtype bool.*255"),
    (SEVEN.astype(str), ValueError, "the dtype is not a number"),
    (np.stack([SEVEN] * 3, axis=-1), ValueError, "the last axis holds colours"),
    (BATCH, ValueError, "this is a batch, call recognize_batch"),
    (SEVEN.ravel(), ValueError, r"the pixels are flat, convert with images.reshape\(28, 28\)"),
    (np.zeros((64, 64), np.uint8), ValueError, r"shape \(64, 64\).*as a crop"),
    (np.uint8(7), TypeError, "image has type uint8, expected one image"),
]


@pytest.mark.parametrize(("image", "kind", "reason"), WRONG_IMAGES)
def test_a_wrong_image_is_explained(client: DigitClient, image: Any, kind: type[Exception], reason: str) -> None:
    with pytest.raises(kind, match=reason):
        client.recognize(image)
    answered = []
    with pytest.raises(kind, match=reason):  # noqa: PT012 - the image before it is answered first
        for place, _ in client.recognize_stream([SEVEN, image]):
            answered.append(place)
    assert answered == [0]


WRONG_BATCHES: list[tuple[Any, type[Exception], str]] = [
    ("7.png", TypeError, "images has type str"),
    (b"\x89PNG", TypeError, r"images has type bytes, .*put one crop in a list"),
    (7, TypeError, "images has type int"),
    ([], ValueError, "images is empty"),
    ([b"\x89PNG", "7.png"], TypeError, r"images\[1\] has type str"),
    ([SEVEN, SEVEN], TypeError, r"images\[0\] is an array in a list, .*np.stack"),
    (np.zeros((0, 28, 28), np.uint8), ValueError, "there are no images"),
    (SEVEN, ValueError, "this is one image"),
    (BATCH.reshape(1, 784), ValueError, r"images.reshape\(-1, 28, 28\)"),
    (BATCH[..., None], ValueError, "the last axis holds colours"),
    (BATCH.astype(np.float16), ValueError, "dtype float16"),
]


@pytest.mark.parametrize(("images", "kind", "reason"), WRONG_BATCHES)
def test_a_wrong_batch_is_explained(client: DigitClient, images: Any, kind: type[Exception], reason: str) -> None:
    with pytest.raises(kind, match=reason):
        client.recognize_batch(images)
    with pytest.raises(kind, match=reason):
        client.read_field(images)


def test_an_image_file_is_read_as_an_image_or_a_crop(client: DigitClient, content: bytes, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(SAMPLES / "7.png"), SEVEN)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(content)
    assert read_image(photo) == content
    assert [client.recognize(read_image(file)).digit for file in (photo, SAMPLES / "7.png")] == [7, 7]
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "none.png")


def save(image: Image.Image, file: Path, **options: Any) -> Path:
    image.save(file, **options)
    return file


def test_an_image_with_exif_is_turned_although_other_tags_are_invalid(tmp_path: Path) -> None:
    on_its_side = Image.fromarray(255 - SEVEN).transpose(Image.Transpose.ROTATE_90)  # orientation 6 turns it back
    file = save(on_its_side, tmp_path / "seven.jpg", exif=ODD_EXIF, quality=95)
    with pytest.raises(TypeError), Image.open(file) as image:
        ImageOps.exif_transpose(image)
    pixels = np.frombuffer(read_image(file), np.uint8).reshape(28, 28)
    assert np.abs(pixels.astype(int) - SEVEN).mean() < 8


def test_the_first_of_several_images_in_a_file_is_read(tmp_path: Path) -> None:
    first, second = Image.fromarray(255 - SEVEN), Image.fromarray(SEVEN // 2)
    file = save(first, tmp_path / "animated.png", save_all=True, append_images=[second])
    np.testing.assert_array_equal(np.frombuffer(read_image(file), np.uint8).reshape(28, 28), SEVEN)


def test_an_image_that_can_not_be_sent_as_it_is_is_refused(tmp_path: Path) -> None:
    transparent = Image.merge("LA", (Image.new("L", (28, 28), 0), Image.fromarray(SEVEN)))
    for image in (transparent, Image.fromarray(SEVEN.astype(np.uint16) * 257)):
        with pytest.raises(ImageError, match="save the image without transparency, with 8 bits"):
            read_image(save(image, tmp_path / "a.png"))


def test_a_crop_may_be_a_flat_array_as_opencv_returns_it(client: DigitClient, content: bytes) -> None:
    crop: Any = np.frombuffer(content, np.uint8)
    assert client.recognize(crop).digit == 7
    assert [one.digit for one in client.recognize_batch([crop, content])] == [7, 7]
    with pytest.raises(TypeError, match=r"put one crop in a list: \[crop\]"):
        client.recognize_batch(crop)
    with pytest.raises(ValueError, match=r"the pixels are flat, convert with images.reshape\(28, 28\)"):
        client.recognize(SEVEN.reshape(-1))


def test_images_that_were_scaled_to_0_and_1_are_refused_and_blank_ones_are_not(client: DigitClient) -> None:
    scaled = (SEVEN > 127).astype(np.uint8)
    with pytest.raises(ValueError, match=r"the values of image are all 0 or 1.*multiply them by 255"):
        client.recognize(scaled)
    with pytest.raises(ValueError, match=r"the values of images\[1\] are all 0 or 1"):
        client.recognize_batch(np.stack([SEVEN, scaled]))
    assert client.recognize(np.zeros((28, 28), np.uint8)).decision is Decision.REJECT_INVALID_IMAGE
