from collections import Counter

import numpy as np
import pytest
from matplotlib import get_data_path
from matplotlib.font_manager import get_font
from numpy.typing import NDArray
from scipy import ndimage

from serving.imaging.framing import measure
from training.dataset import Dataset, Examples
from training.exported import Decisions
from training.non_digits import Kind, count_accepted, evaluation_kinds, of_digits, pen, printed, table

Images = NDArray[np.uint8]
COUNT = 40


@pytest.fixture(scope="module")
def kinds(drawn: Dataset) -> list[Kind]:
    return evaluation_kinds(drawn.test, 3, COUNT)


@pytest.fixture(scope="module")
def by_name(kinds: list[Kind]) -> dict[str, Images]:
    return {kind.name: kind.images for kind in kinds}


def test_every_kind_has_framed_images_that_differ(kinds: list[Kind]) -> None:
    assert len({kind.name for kind in kinds}) == len(kinds) == 40
    assert Counter(kind.group for kind in kinds) == {"trained": 16, "held_out": 14, "digit_shaped": 10}
    for kind in kinds:
        assert kind.images.shape == (COUNT, 28, 28), kind.name
        assert kind.images.dtype == np.uint8
        ink, centres = measure(kind.images)
        assert (ink > 0.005).all(), kind.name
        assert (np.abs(centres - 14) < 0.6).mean() > 0.9, "framed as MNIST frames digits"
        sizes = np.stack([(kind.images > 0).any(axis=axis).sum(axis=1) for axis in (1, 2)]).max(axis=0)
        assert (sizes <= 20).all(), kind.name
        assert len({image.tobytes() for image in kind.images}) > 0.6 * COUNT, kind.name


def test_images_are_equal_for_equal_seeds_only(kinds: list[Kind], drawn: Dataset) -> None:
    same, other = evaluation_kinds(drawn.test, 3, 3), evaluation_kinds(drawn.test, 4, 3)
    for kind, again, different in zip(kinds, same, other, strict=True):
        np.testing.assert_array_equal(kind.images[:3], again.images, kind.name)
        assert not np.array_equal(again.images, different.images), kind.name


@pytest.mark.parametrize(
    ("characters", "fonts"),
    [
        (printed.CAPITALS + printed.SMALL + printed.ROUND + printed.PLUS + printed.LIKE_SIX, printed.PLAIN),
        (printed.OTHER_LIKE_DIGITS + printed.COMMAS, printed.PLAIN),
        (printed.BARS, printed.PLAIN[:9]),
        (printed.GREEK_AND_CYRILLIC + printed.MARKS + printed.CURRENCIES, printed.SANS),
        (printed.HEBREW_AND_ARABIC, printed.SANS[:2]),
        (printed.OTHER_SCRIPTS + printed.ARROWS + printed.SMILEYS + printed.LOGOS + printed.TICKS, printed.SANS[:1]),
    ],
)
def test_the_fonts_have_every_character_that_is_drawn(characters: str, fonts: tuple[str, ...]) -> None:
    for font in fonts:
        there = get_font(f"{get_data_path()}/fonts/ttf/{font}.ttf").get_charmap()
        assert not [character for character in characters if ord(character) not in there], font


def test_letters_like_digits_are_in_no_other_kind() -> None:
    like_digits = set(printed.BARS + printed.ROUND + printed.PLUS + printed.LIKE_SIX + printed.OTHER_LIKE_DIGITS)
    assert {*"DOQGbIlBSZ"} < like_digits
    others = printed.CAPITALS + printed.SMALL + printed.MARKS + printed.CURRENCIES
    assert not like_digits & set(others)
    assert not set("0123456789") & set(others + printed.OTHER_SCRIPTS)


def test_a_script_letter_exists_for_every_letter() -> None:
    there = get_font(f"{get_data_path()}/fonts/ttf/STIXGeneral.ttf").get_charmap()
    assert all(ord(printed._script_letter(letter)) in there for letter in printed.CAPITALS + printed.SMALL)
    assert printed._script_letter("B") == "\N{SCRIPT CAPITAL B}"
    assert printed._script_letter("a") == "\N{MATHEMATICAL SCRIPT SMALL A}"


def test_several_digits_are_wider_than_high(by_name: dict[str, Images]) -> None:
    boxes = by_name["two or three digits"] > 0
    widths, heights = (boxes.any(axis=axis).sum(axis=1) for axis in (1, 2))
    assert (widths > heights).mean() > 0.6
    pieces = [ndimage.label(image, np.ones((3, 3)))[1] for image in boxes]
    assert np.mean(np.array(pieces) > 1) > 0.3, "some touch"


@pytest.fixture
def corner() -> of_digits.Digits:
    """Digits that are all the same: an L of a bar of 20 by 4 at the left and one of 4 by 12 at the bottom."""
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 6:10] = image[20:24, 6:18] = 255
    return of_digits.Digits(Examples(np.repeat(image[None], 10, axis=0), np.arange(10, dtype=np.uint8)))


def test_halves_are_cut_near_the_middle(corner: of_digits.Digits) -> None:
    random = np.random.default_rng(1)
    for side, shape in {"upper": (10, 12), "lower": (10, 12), "left": (20, 6), "right": (20, 6)}.items():
        like_digits = side in ("lower", "right")
        parts = [of_digits.half(corner, random, side, like_digits) for _ in range(50)]
        np.testing.assert_allclose(np.mean([part.shape for part in parts], axis=0), shape, atol=0.6)
    assert all(len(np.unique(part)) == 2 and part[:-4].sum() == 0 for part in parts), "the right half is the foot alone"


def test_only_digits_that_stay_no_digit_are_turned() -> None:
    images = np.zeros((10, 28, 28), np.uint8)
    for digit in range(10):
        images[digit, 8:20, 8 : 9 + digit] = 255  # as wide as its digit says
    digits, random = of_digits.Digits(Examples(images, np.arange(10, dtype=np.uint8))), np.random.default_rng(1)

    def widths(inks: list[NDArray[np.float64]], axis: int) -> set[int]:
        return {int((ink > 0.5).any(axis=axis).sum()) - 1 for ink in inks}

    assert widths([of_digits.upside_down(digits, random) for _ in range(60)], 0) == {3, 4, 7}
    halves = [of_digits.half(digits, random, "upper") for _ in range(60)]
    assert widths(halves, 0) == set(range(10)) - set(of_digits.HALVES_LIKE_DIGITS["upper"])


def test_a_digit_without_images_is_refused() -> None:
    digits = of_digits.Digits(Examples(np.full((2, 28, 28), 9, np.uint8), np.array([3, 4], np.uint8)))
    with pytest.raises(ValueError, match="empty"):
        digits.one(np.random.default_rng(), (7,))


def test_a_crossed_out_digit_keeps_its_ink_under_strokes_beyond_it(corner: of_digits.Digits) -> None:
    random = np.random.default_rng(1)
    for _ in range(30):
        struck = of_digits.crossed_out(corner, random)
        inside = struck[32:-32, 32:-32]
        assert inside.shape == (80, 48)
        assert (inside[:, :16] == 1).all()
        assert (inside[64:] == 1).all()
        assert struck.sum() - (80 * 16 + 16 * 32) > 200
        assert (struck[:, :30].any() and struck[:, -30:].any()) or (struck[:30].any() and struck[-30:].any())


def test_a_pen_draws_lines_of_its_width_and_dots() -> None:
    ink = pen.strokes([np.array([[0, 0.5], [1, 0.5]])], 0.1)
    assert ink.shape == (128, 128)
    assert (ink[:, 64].sum(), (ink.max(axis=0) > 0).sum()) == pytest.approx((10, 106), abs=2), "with round ends"
    dot = pen.strokes([np.array([[0.5, 0.5]])], 0.2)
    assert dot.sum() == pytest.approx(np.pi * (0.1 * 96) ** 2, rel=0.1)


def test_a_curve_runs_through_its_knots() -> None:
    knots = np.array([[0, 0], [0.5, 1], [1, 0.2], [0.3, 0.3]])
    line = pen.curve(knots, 31)
    np.testing.assert_allclose(line[::10], knots, atol=1e-12)
    assert np.abs(np.diff(line, axis=0)).max() < 0.15


def test_slanting_and_bending_keep_the_ink() -> None:
    ink = np.zeros((60, 40))
    ink[10:50, 15:25] = 1
    for seed in range(20):
        random = np.random.default_rng(seed)
        slanted = pen.slant(ink, random, 30, 0.3, 0)
        assert slanted.sum() == pytest.approx(400, rel=0.03)
        assert not slanted[[0, -1]].any(), "nothing is cut off"
        assert pen.bend(ink, random, 0.02).sum() == pytest.approx(400, rel=0.5)


def test_accepted_images_reach_both_thresholds() -> None:
    kind = Kind("anything", "held_out", np.arange(10, dtype=np.uint8).repeat(784).reshape(10, 28, 28))
    confidence, whole = np.arange(10, dtype=np.float32) / 10, ~np.isin(np.arange(10), [1, 5, 8])

    def decide(_: Images) -> Decisions:
        return Decisions(np.zeros((10, 10)), np.where(whole, confidence, np.float32(0)), whole)

    (row,) = count_accepted(decide, [kind], {"0.01": 0.3, "0.005": 0.65})
    assert row["accepted"] == {"0.01": 5, "0.005": 2}
    assert (row["kind"], row["group"], row["images"], row["refused_by_whole"]) == ("anything", "held_out", 10, 3)
    assert row["upper"] == pytest.approx({"0.01": 0.7776, "0.005": 0.5069}, abs=1e-4), "Clopper and Pearson's tables"
    (none,) = count_accepted(decide, [kind], {"0.01": 0.95})
    assert none["upper"]["0.01"] == pytest.approx(1 - 0.05 ** (1 / 10))


def test_the_table_has_means_by_group() -> None:
    rows = [
        {"kind": "rings", "group": "held_out", "images": 200, "accepted": {"0.01": 20, "0.005": 2}},
        {"kind": "waves", "group": "held_out", "images": 200, "accepted": {"0.01": 40, "0.005": 4}},
        {"kind": "bars", "group": "digit_shaped", "images": 200, "accepted": {"0.01": 200, "0.005": 190}},
    ]
    lines = [line.split() for line in table(rows).splitlines()]
    assert lines == [
        ["kind", "group", "at", "1.0%", "at", "0.5%"],
        ["rings", "held_out", "10.0%", "1.0%"],
        ["waves", "held_out", "20.0%", "2.0%"],
        ["mean", "held_out", "15.0%", "1.5%"],
        ["bars", "digit_shaped", "100.0%", "95.0%"],
        ["mean", "digit_shaped", "100.0%", "95.0%"],
    ]
