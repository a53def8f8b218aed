import io

import numpy as np
import pytest
from PIL import Image

from serving.samples.draw import FIELD, SAMPLES, draw, sample_photos


@pytest.mark.parametrize("digit", range(10))
def test_a_committed_digit_is_the_one_that_the_code_draws(digit: int) -> None:
    with Image.open(SAMPLES / f"{digit}.png") as image:
        np.testing.assert_array_equal(255 - np.asarray(image), draw(digit))


def test_the_committed_photos_are_those_that_the_code_draws() -> None:
    photos = sample_photos()
    assert {str(path.relative_to(SAMPLES)) for path in SAMPLES.rglob("*.jpg")} == photos.keys()
    for name, photo in photos.items():
        with Image.open(SAMPLES / name) as committed, Image.open(io.BytesIO(photo)) as drawn:
            difference = np.asarray(committed, np.float64) - np.asarray(drawn)
        assert np.abs(difference).mean() < 2, "`make samples`; JPEG decoders differ by a grey level or so"


def test_the_sample_lexicon_has_the_sample_field() -> None:
    assert FIELD in (SAMPLES / "lexicons" / "zip.txt").read_text().splitlines()
