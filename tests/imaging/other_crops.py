"""Crops that show no single digit, kind by kind: paper, light, printing, marks, and several digits."""

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tests.imaging.digit_crops import half_plane, shade_band
from tests.imaging.printed_crops import line_width, off_centre_box, rule, sides
from tests.imaging.scene import Draw, Picture, Random, Scene, encode, extent, lit


def blank(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random, (24, 400), (0.4, 2.0))
    lit(scene, random)
    return scene.content(random)


def light_alone(image: Picture, random: Random) -> bytes:
    """A lamp, a shadow with a hard or soft edge, or both; sometimes on noisy paper."""
    scene = Scene.draw(random)
    kind = random.integers(3)
    if kind != 1:
        soft = random.choice([1.0, scene.short * random.uniform(0.05, 0.5)])
        scene.light *= 1 - np.float32(random.uniform(0.2, 0.6)) * np.clip(
            half_plane(scene, random) / np.float32(soft) + 0.5, 0, 1
        )
    if kind != 0:
        x, y = scene.grid()
        across, down = random.uniform(-0.6, 0.6, 2)
        dim = random.uniform(0.25, 0.6)
        spot = np.exp(-(((x - across) ** 2 + (y - down) ** 2) / (2 * random.uniform(0.2, 1.0) ** 2))).astype(np.float32)
        scene.light *= dim + (1 - dim) * spot
    return scene.content(random)


def strips_alone(image: Picture, random: Random) -> bytes:
    """Dark strips and corners of the background, without a digit."""
    scene = Scene.draw(random)
    scene.print_level = random.uniform(0, 0.4)
    for name in random.permutation(list("tblr"))[: random.integers(1, 5)]:
        deep = random.uniform(0.03, 0.4)
        turned = {"t": scene.printed, "b": scene.printed[::-1], "l": scene.printed.T, "r": scene.printed.T[::-1]}[str(name)]
        turned[: round(deep * len(turned))] = 1
    return scene.content(random)


def empty_box(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    lit(scene, random)
    thickness, inset = line_width(scene, random), min(random.uniform(0, 10), 0.08 * scene.short)
    sides(scene, random, inset, thickness, str(random.choice(["tblr", "tblr", "blr", "tb", "lr", "bl", "tlr"])))
    return scene.content(random)


def empty_box_off_centre(image: Picture, random: Random) -> bytes:
    """Lines of up to four boxes."""
    scene = Scene.draw(random)
    off_centre_box(scene, random, tuple(random.uniform(-0.45, 0.45, 2)))
    return scene.content(random)


def empty_box_turned(image: Picture, random: Random) -> bytes:
    """A box turned by up to 12 degrees, or with round corners."""
    scene = Scene.draw(random)
    size = np.array([scene.width, scene.height]) * random.uniform(0.7, 0.9)
    angle, radius = (0.0, random.uniform(0.15, 0.4)) if random.random() < 0.5 else (random.uniform(-12, 12), 0.0)
    radius *= min(size)
    corners = cv2.boxPoints(((scene.width / 2, scene.height / 2), tuple(size - 2 * radius), angle))
    thickness = line_width(scene, random)
    if radius:
        outer, inner = np.zeros_like(scene.printed), np.zeros_like(scene.printed)
        for layer, wide in ((outer, radius + thickness / 2), (inner, radius - thickness / 2)):
            cv2.fillPoly(layer, [np.round(corners * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
            layer[:] = cv2.dilate(layer, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(wide) + 1,) * 2))
        scene.printed = outer - inner
    else:
        for start, end in zip(corners.tolist(), np.roll(corners, 1, 0).tolist(), strict=True):
            scene.line(tuple(start), tuple(end), thickness)
    return scene.content(random)


def half_hole(image: Picture, random: Random) -> bytes:
    """A punched hole at the edge of the crop, dark beneath."""
    scene = Scene.draw(random)
    along, side = random.uniform(0.2, 0.8), int(random.integers(4))
    radius = random.uniform(0.15, 0.35) * scene.short
    inward = random.uniform(-0.4, 0.4) * radius
    x, y = [(inward, along * scene.height), (scene.width - inward, along * scene.height)][side % 2]
    if side > 1:
        x, y = along * scene.width, (inward, scene.height - inward)[side % 2]
    cv2.circle(scene.printed, (round(x * 16), round(y * 16)), round(radius * 16), 1.0, -1, cv2.LINE_AA, 4)
    scene.print_level = random.uniform(0, 0.4)
    return scene.content(random)


def shadow_band_alone(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    shade_band(scene, random)
    return scene.content(random)


def ruled_alone(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    thickness = line_width(scene, random)
    kind = random.integers(3)
    if kind != 1:
        rule(scene, random, thickness, upright=False)
    if kind != 0:
        rule(scene, random, thickness, upright=True)
    return scene.content(random)


def barcode(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    top, bottom = random.uniform(0, 0.2) * scene.height, random.uniform(0.8, 1) * scene.height
    x = random.uniform(0.05, 0.2) * scene.width
    while x < random.uniform(0.8, 0.95) * scene.width:
        wide = random.uniform(0.01, 0.05) * scene.width
        scene.line((x, top), (x, bottom), wide)
        x += wide + random.uniform(0.02, 0.06) * scene.width
    return scene.content(random)


def postmark(image: Picture, random: Random) -> bytes:
    """Two rings and lines across, of a stamp larger or smaller than the crop."""
    scene = Scene.draw(random)
    centre = tuple(round(value * 16) for value in random.uniform(0.35, 0.65, 2) * (scene.width, scene.height))
    radius, thickness = random.uniform(0.25, 0.6) * scene.short, max(1, round(random.uniform(0.01, 0.03) * scene.short))
    for share in (1, random.uniform(0.6, 0.85)):
        cv2.circle(scene.printed, centre, round(radius * share * 16), 1.0, thickness, cv2.LINE_AA, 4)
    for _ in range(random.integers(0, 4)):
        y, askew = random.uniform(0.2, 0.8) * scene.height, random.uniform(-0.1, 0.1) * scene.height
        scene.line((-2.0, y - askew), (scene.width + 2.0, y + askew), thickness)
    return scene.content(random)


def several_digits(image: Picture, random: Random) -> bytes:
    """Two digits, or three, side by side, sometimes touching."""
    scene = Scene.draw(random, (60, 260), (0.7, 1.8))
    count = int(random.choice([2, 2, 3]))
    gap = random.uniform(-0.05, 0.3)
    others = [image, np.ascontiguousarray(image.T) if random.random() < 0.3 else image, image]
    widths = [wide / high for wide, high in map(extent, others[:count])]
    height = min(random.uniform(0.5, 0.75) * scene.height, 0.9 * scene.width / (sum(widths) + gap * (count - 1)))
    left = (scene.width - height * (sum(widths) + gap * (count - 1))) / 2
    for other, share in zip(others, widths, strict=False):
        scene.put(other, (scene.height - height) / 2 + random.uniform(-0.05, 0.05) * height, left, height)
        left += height * (share + gap)
    return scene.content(random)


def crossed_out(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random, (110, 260))
    top, left, height, width = scene.put_centred(image, random)
    thickness = 0.09 * height
    a, b = left - 0.1 * width, left + 1.1 * width
    scene.line(
        (a, top + random.uniform(-0.1, 0.1) * height), (b, top + height * random.uniform(0.9, 1.1)), thickness, printed=False
    )
    if random.random() < 0.7:
        scene.line(
            (b, top + random.uniform(-0.1, 0.1) * height),
            (a, top + height * random.uniform(0.9, 1.1)),
            thickness,
            printed=False,
        )
    return scene.content(random)


def scribble(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    points = random.uniform(0.2, 0.8, (random.integers(5, 12), 2)) * (scene.width, scene.height)
    thickness = random.uniform(0.02, 0.06) * scene.short
    for start, end in zip(points[:-1].tolist(), points[1:].tolist(), strict=True):
        scene.line(tuple(start), tuple(end), thickness, printed=False)
    return scene.content(random)


def letter(image: Picture, random: Random) -> bytes:
    """A printed capital that no digit looks like."""
    scene = Scene.draw(random, (80, 260))
    scene.ink = text(scene, random, str(random.choice(list("AEFHKMNRWX"))), random.uniform(0.5, 0.75))
    return scene.content(random)


def text(scene: Scene, random: Random, character: str, share: float) -> NDArray[np.float32]:
    """Draws a character of Pillow's own font, its height a share of the crop's."""
    canvas = Image.new("L", (400, 400))
    ImageDraw.Draw(canvas).text((100, 50), character, fill=255, font=ImageFont.load_default(200))
    left, top, right, bottom = canvas.getbbox() or (0, 0, 1, 1)
    height = share * scene.height
    wide = min(height * (right - left) / (bottom - top), 0.9 * scene.width)
    height = wide * (bottom - top) / (right - left)
    x, y = (scene.width - wide) * random.uniform(0.4, 0.6), (scene.height - height) * random.uniform(0.4, 0.6)
    size = (max(1, round(wide)), max(1, round(height)))
    drawn = cv2.resize(np.asarray(canvas)[top:bottom, left:right], size, interpolation=cv2.INTER_AREA)
    ink = np.zeros_like(scene.ink)
    ink[round(y) : round(y) + size[1], round(x) : round(x) + size[0]] = drawn[: scene.height, : scene.width] / np.float32(
        255
    )
    return ink


def texture(image: Picture, random: Random) -> bytes:
    """Noise of a grain between one pixel and a tenth of the crop."""
    scene = Scene.draw(random)
    pixels = random.normal(size=(scene.height, scene.width))
    pixels = cv2.GaussianBlur(pixels, (0, 0), random.uniform(0.3, 0.1 * scene.short))
    pixels = 128 + random.uniform(20, 60) * (pixels - pixels.mean()) / pixels.std()
    return encode(np.clip(pixels, 0, 255).astype(np.uint8), random)


# Marks that have the shape of a digit: only their size and place in the crop can tell.


def _mark(scene: Scene, random: Random, height: float, base: float) -> tuple[float, float]:
    """Returns the middle (x, y) of a mark on a line of writing whose digits have about 0.6 of the crop's height."""
    return scene.width * random.uniform(0.4, 0.6), scene.height * base + height * random.uniform(-0.1, 0.1)


def comma(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    height = scene.height * random.uniform(0.08, 0.2)
    x, y = _mark(scene, random, height, 0.8)
    lean = random.uniform(0.1, 0.5) * height
    scene.line(
        (x + lean / 2, y - height / 2), (x - lean / 2, y + height / 2), height * random.uniform(0.2, 0.45), printed=False
    )
    return scene.content(random)


def dash(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    x, y = _mark(scene, random, 0.1 * scene.height, 0.5)
    half, lean = random.uniform(0.12, 0.35) * scene.width, random.uniform(-0.03, 0.03) * scene.height
    scene.line((x - half, y - lean), (x + half, y + lean), scene.height * random.uniform(0.02, 0.07), printed=False)
    return scene.content(random)


def dot(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    x, y = _mark(scene, random, 0.1 * scene.height, random.choice([0.5, 0.78]))
    radius = random.uniform(0.02, 0.09) * scene.short
    cv2.circle(scene.ink, (round(x * 16), round(y * 16)), round(radius * 16), 1.0, -1, cv2.LINE_AA, 4)
    return scene.content(random)


def bar(image: Picture, random: Random) -> bytes:
    """A ruler's stroke, taller than the digits: a separator."""
    scene = Scene.draw(random)
    x, _ = _mark(scene, random, 0, 0.5)
    over = random.uniform(-0.05, 0.08) * scene.height
    scene.line((x, over), (x, scene.height - over), scene.height * random.uniform(0.015, 0.05))
    return scene.content(random)


def plus(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    half = random.uniform(0.15, 0.3) * scene.short
    x, y = _mark(scene, random, half, 0.5)
    thickness = half * random.uniform(0.1, 0.35)
    scene.line((x - half, y), (x + half, y), thickness, printed=False)
    scene.line((x, y - half), (x, y + half), thickness, printed=False)
    return scene.content(random)


OTHER_KINDS: dict[str, Draw] = {
    "blank paper": blank,
    "light and shadow alone": light_alone,
    "band of shadow alone": shadow_band_alone,
    "dark strips alone": strips_alone,
    "empty box or comb": empty_box,
    "empty boxes off centre": empty_box_off_centre,
    "empty box, turned or round": empty_box_turned,
    "half a hole at the edge": half_hole,
    "ruled or squared paper alone": ruled_alone,
    "barcode": barcode,
    "postmark": postmark,
    "two or three digits": several_digits,
    "crossed-out digit": crossed_out,
    "scribble": scribble,
    "letter": letter,
    "texture": texture,
}
"""How to draw a crop of each kind. `image` is a framed digit, (28, 28) uint8; most kinds don't use it."""

MARK_KINDS: dict[str, Draw] = {"comma": comma, "dash": dash, "dot": dot, "bar": bar, "plus": plus}
"""Marks that have the shape of a digit once they are framed."""
