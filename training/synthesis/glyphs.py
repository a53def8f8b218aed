"""Digits drawn from stroke models, in regional styles that MNIST, written by Americans, hardly has.

A 1 with a long upstroke, a crossed 7, an open 4 or one of a single stroke, a 9 that ends in a curl or looks like a
mirrored P, a 2 with a loop, a slashed 0; and pens up to a quarter of the digit's height.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from training.dataset import Examples
from training.synthesis.strokes import Hand, Points, arc, curve, join, line

Model = Callable[[np.random.Generator], list[Points]]

_SHARES = np.array([1.2, 2.2, 0.9, 0.8, 2.0, 1.0, 0.8, 1.6, 0.8, 2.4])  # by digit: more of those whose styles differ most
_HANDS = {0: Hand(aspect=(0.45, 1.2)), 1: Hand(aspect=(0.3, 0.85)), 8: Hand(pen=(0.05, 0.18))}


def glyphs(count: int, random: np.random.Generator) -> Examples:
    """Draws `count` digits, framed as MNIST frames them."""
    labels = random.choice(10, count, p=_SHARES / _SHARES.sum()).astype(np.uint8)
    hand = Hand()
    images = np.empty((count, 28, 28), np.uint8)
    for index, digit in enumerate(labels.tolist()):
        images[index] = _HANDS.get(digit, hand).write(_MODELS[digit](random), random)
    return Examples(images, labels)


def styled(digit: int, random: np.random.Generator, pen: tuple[float, float] | None = None) -> np.ndarray:
    """Draws one digit, (28, 28) uint8; `pen` replaces the range of pens."""
    hand = _HANDS.get(digit, Hand())
    return (replace(hand, pen=pen) if pen else hand).write(_MODELS[digit](random), random)


def _zero(random: np.random.Generator) -> list[Points]:
    start = random.uniform(20, 160)
    strokes = [arc((0.5, 0.5), (0.5, 0.5), start, random.uniform(345, 395))]
    if random.random() < 0.2:
        strokes.append(line((random.uniform(0.05, 0.3), 0.85), (random.uniform(0.7, 0.95), 0.15)))
    return strokes


def _one(random: np.random.Generator) -> list[Points]:
    top = (random.uniform(0.5, 0.72), 0.0)
    foot = (top[0] + random.uniform(-0.14, 0.08), 1.0)
    if random.random() < 0.12:
        return [line(top, foot)]
    fall = random.uniform(0.1, 0.95)  # how far down the upstroke begins
    begin = (top[0] - random.uniform(0.15, 0.6) * (0.35 + fall), fall)
    if random.random() < 0.6:
        strokes = [line(begin, top, foot)]
    else:
        middle = ((begin[0] + top[0]) / 2 - 0.05, 0.45 * fall)
        strokes = [join(curve([begin, middle, top]), line(top, foot))]
    if random.random() < 0.2:
        half = random.uniform(0.15, 0.35)
        strokes.append(line((foot[0] - half, 1.0), (foot[0] + half, 1.0)))
    return strokes


def _two(random: np.random.Generator) -> list[Points]:
    bow = curve([(0.06, random.uniform(0.14, 0.3)), (0.45, 0), (0.9, 0.25), (0.5, 0.65), (0.04, 0.96)])
    if random.random() < 0.4:
        return [join(bow, curve([(0.04, 0.96), (0.03, 0.8), (0.26, 0.82), (0.6, 0.97), (1, random.uniform(0.84, 0.98))]))]
    return [join(bow, line((0.04, 0.96), (0.98, random.uniform(0.92, 1))))]


def _three(random: np.random.Generator) -> list[Points]:
    lower = curve([(0.4, 0.45), (0.9, 0.72), (0.5, 1), (0.02, random.uniform(0.82, 0.95))])
    if random.random() < 0.3:  # flat top
        return [join(line((0.05, 0.03), (0.85, 0), (0.4, 0.45)), lower)]
    return [join(curve([(0.08, random.uniform(0.08, 0.2)), (0.5, 0), (0.84, 0.22), (0.4, 0.45)]), lower)]


def _four(random: np.random.Generator) -> list[Points]:
    bar, style = random.uniform(0.45, 0.72), random.random()
    if style < 0.3:  # open: an angle and a separate stem
        angle = line((random.uniform(0.2, 0.45), 0), (0.02, bar), (0.96, bar - random.uniform(0, 0.12)))
        return [angle, line((random.uniform(0.6, 0.8), random.uniform(0.1, 0.45)), (random.uniform(0.5, 0.72), 1))]
    if style < 0.6:  # like a y: a bowl that runs into the stem
        stem = (random.uniform(0.75, 0.92), random.uniform(0.03, 0.5))
        bowl = curve([(random.uniform(0.1, 0.3), 0), (random.uniform(0.02, 0.15), 0.3), (0.27, bar), (0.65, bar - 0.06), stem])
        return [join(bowl, line(stem, (random.uniform(0.55, 0.82), 1)))]
    if style < 0.8:  # a single stroke, like a flash
        right = (random.uniform(0.75, 0.95), bar - random.uniform(0.05, 0.2))
        return [line((random.uniform(0.3, 0.5), 0), (0.05, bar), right, (random.uniform(0.45, 0.65), 1))]
    return [line((0.7, 1), (0.7, 0), (0.02, bar), (1, bar))]


def _five(random: np.random.Generator) -> list[Points]:
    body = curve(
        [(0.2, random.uniform(0.38, 0.46)), (0.6, 0.38), (0.92, 0.68), (0.5, 1), (0.02, random.uniform(0.84, 0.95))]
    )
    corner = (0.25, random.uniform(0.02, 0.1))
    flag = (random.uniform(0.6, 0.95), random.uniform(0, 0.08))
    if random.random() < 0.6:
        return [join(line(flag, corner, (0.2, 0.42)), body)]
    return [join(line(corner, (0.2, 0.42)), body), line(corner, flag)]


def _six(random: np.random.Generator) -> list[Points]:
    top, height = (random.uniform(0.55, 0.85), 0.0), random.uniform(0.48, 0.62)
    return [curve([top, (0.2, 0.35), (0.04, 0.72), (0.45, 1), (0.88, 0.78), (0.5, height), (0.1, random.uniform(0.68, 0.8))])]


def _seven(random: np.random.Generator) -> list[Points]:
    serif = line((0.02, random.uniform(0.12, 0.22)), (0.03, 0.04))
    foot = (random.uniform(0.18, 0.5), 1.0)
    if random.random() < 0.3:
        body = join(line((0.03, 0.05), (0.95, 0.02)), curve([(0.95, 0.02), (0.6, 0.45), foot]))
    else:
        body = line((0.03, random.uniform(0, 0.08)), (0.95, random.uniform(0, 0.06)), foot)
    strokes = [join(serif, body) if random.random() < 0.4 else body]
    if random.random() < 0.7:
        height = random.uniform(0.42, 0.6)
        strokes.append(line((random.uniform(0.1, 0.3), height + random.uniform(-0.05, 0.07)), (random.uniform(0.75, 1), height)))
    return strokes


def _eight(random: np.random.Generator) -> list[Points]:
    if random.random() < 0.25:  # two rings
        waist = random.uniform(0.4, 0.52)
        upper, lower = waist / 2, (1 - waist) / 2
        width = random.uniform(0.32, 0.45)
        return [arc((0.5, upper), (width, upper), -90, 380), arc((0.5, waist + lower), (0.5, lower), 90, 380)]
    end = (random.uniform(0.65, 0.82), random.uniform(0.02, 0.14))
    return [curve([(0.78, 0.1), (0.4, 0), (0.14, 0.22), (0.5, 0.47), (0.9, 0.75), (0.5, 1), (0.1, 0.77), (0.5, 0.5), (0.84, 0.25), end])]


def _nine(random: np.random.Generator) -> list[Points]:
    height, width = random.uniform(0.2, 0.3), random.uniform(0.25, 0.45)
    right, style = 0.5 + width, random.random()
    if style < 0.25:  # like a mirrored P, with a tail that begins high and curls up on the left
        loop = arc((0.5, height), (width, height), 20, 320)
        tail = [(random.uniform(0.62, 0.85), 0.7), (random.uniform(0.3, 0.5), 1), (random.uniform(0, 0.15), random.uniform(0.82, 0.95))]
        return [join(loop, curve([loop[-1], (0.5 + 0.6 * width, 0.48), *tail]))]
    start = random.uniform(-20, 60)
    loop = arc((0.5, height), (width, height), start, random.uniform(290, 375))
    stem = [(right, random.uniform(0.35, 0.5)), (right - random.uniform(0, 0.12), random.uniform(0.68, 0.8))]
    if random.random() < 0.45:
        return [join(loop, curve([loop[-1], *stem, (random.uniform(0.35, 0.7), 1)]))]
    curl = [(random.uniform(0.35, 0.6), 1), (random.uniform(0, 0.2), random.uniform(0.84, 0.96))]
    if random.random() < 0.3:
        curl.append((random.uniform(0.05, 0.2), random.uniform(0.68, 0.8)))
    return [join(loop, curve([loop[-1], *stem, *curl]))]


_MODELS: tuple[Model, ...] = (_zero, _one, _two, _three, _four, _five, _six, _seven, _eight, _nine)
