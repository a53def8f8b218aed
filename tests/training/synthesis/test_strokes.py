"""Curves, hands and pens."""

import numpy as np
import pytest

from training.synthesis.strokes import Hand, arc, curve, draw, join, line


def test_a_curve_passes_through_its_points() -> None:
    points = np.array([(0, 0), (0.5, 1), (1, 0.2), (0.3, 0.1)])
    smooth = curve(points, samples=8)
    np.testing.assert_allclose(smooth[::8], points, atol=1e-12)
    assert len(smooth) == 3 * 8 + 1


def test_a_closed_curve_ends_where_it_begins() -> None:
    smooth = curve([(0, 0), (1, 0), (1, 1), (0, 1)], closed=True)
    np.testing.assert_allclose(smooth[0], smooth[-1])


def test_lines_and_arcs_have_points_on_the_way() -> None:
    assert len(line((0, 0), (1, 1), (1, 0))) == 13
    ring = arc((0.5, 0.5), (0.5, 0.25), 0, 360)
    np.testing.assert_allclose((((ring - 0.5) / [0.5, 0.25]) ** 2).sum(axis=1), 1)
    np.testing.assert_allclose(ring[0], ring[-1], atol=1e-9)
    assert arc((0.5, 0.5), (0.5, 0.5), 0, 90)[-1] == pytest.approx((0.5, 0)), "counter-clockwise, as it is seen"
    assert join([(0, 0)], line((0, 0), (1, 0))).shape == (8, 2)


def test_a_broader_pen_leaves_more_ink() -> None:
    stroke = [np.array([(20.0, 20.0), (70.0, 70.0)])]
    thin, thick = draw(stroke, 3).sum(), draw(stroke, 9).sum()
    assert thick > 2 * thin > 0


def test_two_hands_write_the_same_strokes_differently_but_framed_alike() -> None:
    random = np.random.default_rng(1)
    strokes = [line((0.1, 0), (0.9, 0), (0.4, 1))]
    first, second = (Hand().write(strokes, random) for _ in range(2))
    assert (first != second).any()
    for image in (first, second):
        rows = np.flatnonzero(image.any(axis=1))
        assert image.shape == (28, 28)
        assert rows[-1] - rows[0] + 1 == pytest.approx(20, abs=1)
