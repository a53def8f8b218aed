import numpy as np
import pytest

from serving.imaging.components import BoundingBox, find_components
from serving.imaging.crop import frame_crop
from serving.imaging.framing import frame
from serving.imaging.ink import find_ink
from serving.samples.photograph import encode


@pytest.mark.parametrize("noise", [0, 4, 12])
def test_a_photo_of_blank_paper_gives_an_image_without_ink(noise: float) -> None:
    random = np.random.default_rng(1)
    light = np.add.outer(np.linspace(150, 200, 90), np.linspace(0, 40, 60))
    paper = np.clip(light + random.normal(0, noise, light.shape), 0, 255).astype(np.uint8)
    assert not frame_crop(encode(paper, "PNG")).image.any()


def test_a_ruling_line_is_removed_and_an_equally_straight_digit_is_kept() -> None:
    paper = np.full((90, 60), 200, np.uint8)
    paper[20:70, 28:34] = 40  # a 1
    without_line = find_ink(paper)
    paper[78:80] = 90
    np.testing.assert_allclose(find_ink(paper).cover, without_line.cover, atol=1e-6)
    one = np.full((90, 12), 200, np.uint8)
    one[:, 5:7] = 40
    ink = find_ink(one)
    assert ink.cover.shape[0] == 90
    assert ink.cover.max(axis=1).min() > 0.9


def test_photos_of_any_size_and_content_give_ink_between_0_and_1() -> None:
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
                assert ((ink.cover >= 0) & (ink.cover <= 1)).all()
                assert ink.cover.any() or not ink.whole
                assert frame(ink.cover).shape == (28, 28)


def test_a_component_is_found_behind_more_specks_than_16_bits_number() -> None:
    mask = np.zeros((600, 600), np.uint8)
    mask[:570:2, ::2] = 255  # 85,500 specks
    mask[580:590, 100:120] = 255
    labels, (component,) = find_components(mask)
    assert (component.area, component.box) == (200, BoundingBox(100, 580, 20, 10))
    assert (labels[580:590, 100:120] == component.label).all()
    assert np.count_nonzero(labels == component.label) == 200
