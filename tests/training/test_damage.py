import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from serving.repository.versions import ModelVersion
from training.damage import DAMAGES, SEVERE, Damage, clutter, geometry, light, pens
from training.exported import Exported

Images = NDArray[np.float32]
NAMES = [f"{name} {amount}".strip() for name, amount, _ in DAMAGES]


def apply(damage: Damage, images: Images) -> NDArray[np.float64]:
    return np.asarray(damage(images, np.random.default_rng(1)), np.float64)


def blank(count: int = 300) -> Images:
    return np.zeros((count, 28, 28), np.float32)


def bars(count: int = 300) -> Images:
    """Upright strokes of the size of MNIST's: 20 pixels high and 3 wide."""
    images = blank(count)
    images[:, 4:24, 12:15] = 255
    return images


def spread(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of the ink along its longer axis, pixels, (N,)."""
    places = np.indices((28, 28)).reshape(2, -1)
    return np.array([np.linalg.eigvalsh(np.cov(places, ddof=0, aweights=image.ravel()))[1] ** 0.5 for image in images])


@pytest.mark.parametrize(("name", "damage"), [(name, row[2]) for name, row in zip(NAMES[1:], DAMAGES[1:], strict=True)])
def test_every_damage_changes_digits_that_mostly_stay_readable(
    name: str, damage: Damage, drawings: tuple[NDArray[np.uint8], NDArray[np.uint8]], bundled: ModelVersion
) -> None:
    digits, labels = (part[:100] for part in drawings)
    damaged = apply(damage, digits.astype(np.float32))
    assert damaged.shape == (100, 28, 28)
    assert np.isfinite(damaged).all()
    changed = (np.abs(damaged - digits).max(axis=(1, 2)) > 8).mean()
    assert changed > 0.9 or (name.startswith(("inverted band", "occlusion", "glare")) and changed > 0.3)
    read = Exported(bundled.path, 1).answers(np.clip(np.rint(damaged), 0, 255).astype(np.uint8), 100)[1].argmax(axis=1)
    assert np.mean(read == labels) > 0.35, "far above chance"


def test_the_severe_kinds_are_those_of_the_second_list() -> None:
    assert len(SEVERE) == 17
    assert {"haze", "hollow strokes", "thick pen", "JPEG"} <= set(SEVERE)
    assert not {"none", "shift", "occlusion"} & set(SEVERE)


@pytest.mark.parametrize("veil", [0.5, 0.65])
def test_haze_takes_this_share_of_the_contrast_everywhere(veil: float) -> None:
    paper, ink = (apply(light.haze(veil), blank() + grey) for grey in (0, 255))
    np.testing.assert_allclose(ink - paper, 255 * (1 - veil), atol=0.01)
    assert paper.std(axis=(1, 2)).mean() > 20, "the veil is uneven"
    assert paper.min() >= 0
    assert ink.max() <= 255


@pytest.mark.parametrize("strength", [0.7, 0.9])
def test_glare_fades_one_spot_and_no_corner(strength: float) -> None:
    lit = apply(light.glare(strength), blank() + 200) / 200
    darkest = lit.min(axis=(1, 2))
    assert darkest == pytest.approx(np.full(300, 1 - strength), abs=0.03)
    faded = (lit < (1 + darkest[:, None, None]) / 2).sum(axis=(1, 2))
    assert 40 < faded.mean() < 160
    assert lit[:, [0, 0, -1, -1], [0, -1, 0, -1]].max(axis=1).min() > 0.99


@pytest.mark.parametrize("pixels", [5, 9])
def test_an_inverted_band_has_this_width_in_both_directions(pixels: int) -> None:
    banded = apply(light.inverted_band(pixels), blank() + 55)
    inverted = banded == 200
    assert set(inverted.sum(axis=(1, 2))) == {28 * pixels}
    lying = inverted.all(axis=2).sum(axis=1) == pixels
    assert 100 < lying.sum() < 200
    assert (inverted[~lying].all(axis=1).sum(axis=1) == pixels).all()


def test_motion_blur_draws_a_dot_out_to_this_length_in_all_directions() -> None:
    dots = blank()
    dots[:, 14, 14] = 255
    for pixels in (4, 6):
        blurred = apply(light.motion_blur(pixels), dots)
        np.testing.assert_allclose(blurred.sum(axis=(1, 2)), 255, rtol=1e-4)
        assert spread(blurred).mean() == pytest.approx(pixels / 12**0.5, rel=0.15)
    assert (blurred.sum(axis=0) > 1).sum() > 20, "in many directions"


def test_low_resolution_keeps_the_ink_and_loses_what_is_finer() -> None:
    grid = np.tile(np.array([[255, 0], [0, 255]], np.float32), (1, 14, 14))
    for pixels in (10, 8):
        assert apply(light.low_resolution(pixels), grid)[0, 4:-4, 4:-4].std() < 20
        halves = np.repeat(np.repeat([[0, 255]], 14, axis=1), 28, axis=0)[None].astype(np.float32)
        coarse = apply(light.low_resolution(pixels), halves)
        assert coarse.mean() == pytest.approx(127.5, abs=1)
        assert coarse[0, 14, [2, -3]] == pytest.approx([0, 255], abs=1)


def test_jpeg_loses_more_at_lower_quality(images: NDArray[np.uint8]) -> None:
    digits = images[:20].astype(np.float32)
    errors = [np.abs(apply(light.jpeg(quality), digits) - digits).mean() for quality in (95, 10, 3)]
    assert errors[0] < 2 < errors[1] < errors[2]


def test_stripes_are_parallel_lines_of_this_grey_over_the_whole_image() -> None:
    for grey in (120, 220):
        striped = apply(clutter.stripes(grey), blank())
        assert 0.9 * grey < striped.max(axis=(1, 2)).min() <= striped.max() <= grey
        assert (striped > grey / 2).mean() == pytest.approx(1 / 6.5, abs=0.02)
        quarters = striped.reshape(300, 2, 14, 2, 14).max(axis=(2, 4))
        assert (quarters > grey / 2).all()


def test_a_zigzag_runs_from_side_to_side_and_bends() -> None:
    zigzags = apply(clutter.zigzag(200), blank())
    assert zigzags.max() <= 200
    assert ((zigzags > 100).any(axis=1).sum(axis=1) > 24).mean() > 0.9
    assert spread(zigzags).mean() > 6
    heights = (zigzags > 50).any(axis=2).sum(axis=1)
    assert heights.min() >= 4


@pytest.mark.parametrize("lines", [1, 2])
def test_dashed_lines_have_gaps(lines: int) -> None:
    dashed = apply(clutter.dashes(lines), blank())
    pieces = np.array([ndimage.label(image > 60, np.ones((3, 3)))[1] for image in dashed])
    assert pieces.min() > 1
    assert 3 * lines < pieces.mean() < 8 * lines


@pytest.mark.parametrize("number", [1, 3])
def test_blotches_are_round_and_of_this_number(number: int) -> None:
    blotted = apply(clutter.blotches(number), blank()) / 255
    assert blotted.sum(axis=(1, 2)).mean() == pytest.approx(number * np.pi * 2**2, rel=0.15)
    pieces = np.array([ndimage.label(image > 0.5)[1] for image in blotted])
    assert pieces.max() == number


@pytest.mark.parametrize("share", [0.08, 0.16])
def test_specks_hit_this_share_of_the_pixels(share: float) -> None:
    specked = apply(clutter.specks(share), blank())
    assert (specked > 0).mean() == pytest.approx(share, rel=0.05)
    assert 100 <= specked[specked > 0].min() <= specked.max() <= 255


@pytest.mark.parametrize("pixels", [4, 7])
def test_a_neighbour_looks_in_at_one_side(pixels: int) -> None:
    beside = apply(clutter.neighbours(pixels), bars()) > 0
    left, right = beside[:, :, :pixels].any(axis=(1, 2)), beside[:, :, 28 - pixels :].any(axis=(1, 2))
    assert (left ^ right).all()
    assert 100 < left.sum() < 200
    assert (beside[:, :, pixels : 28 - pixels].sum(axis=(1, 2)) == 60).all(), "the digit stays"


def test_a_warp_moves_dots_by_its_amount() -> None:
    dots = blank(600)
    dots[:, 12:16, 12:16] = 255
    distances = []
    for pixels in (0.9, 1.3):
        warped = apply(geometry.warp(pixels), dots)
        there = warped.sum(axis=(1, 2)) > 0
        assert there.mean() > 0.99
        distances.append(np.mean([np.hypot(*np.subtract(ndimage.center_of_mass(one), 13.5)) for one in warped[there]]))
    assert distances[0] < distances[1]
    assert 0.3 < distances[0] / 0.9 < 1.5


def test_a_thick_pen_draws_a_quarter_of_the_height() -> None:
    thick = apply(pens.thick(1.25), bars(1))[0]
    height, width = (thick.sum(axis=axis).max() / 255 for axis in (0, 1))
    assert width / height == pytest.approx(0.25, abs=0.05)
    assert height == pytest.approx(19, abs=1), "rounded at the ends"


def test_a_thin_pen_narrows_strokes_and_loses_none() -> None:
    widths = [apply(pens.thin(radius), bars(1))[0, 14].sum() / 255 for radius in (1, 1.4)]
    assert widths == pytest.approx([1.5, 0.95], abs=0.3)
    hair = blank(1)
    hair[:, 4:24, 14] = 200
    assert apply(pens.thin(1.4), hair)[0, 4:24, 14].min() == 50


def test_broken_strokes_have_gaps_of_paper() -> None:
    wide = bars()
    for gaps in (3, 5):
        damaged = apply(pens.broken(gaps), wide)
        lost = 1 - damaged.sum(axis=(1, 2)) / wide.sum(axis=(1, 2))
        assert 0.04 * gaps < lost.mean() < 0.12 * gaps
        assert (damaged <= wide).all()


def test_hollow_strokes_are_outlines() -> None:
    for radius in (1, 1.5):
        across = apply(pens.hollow(radius), bars(1))[0, 14]
        assert across[12:15].max() < 40
        assert across[[11, 15]].min() > 200
        assert across[[9, 17]].max() < 10
