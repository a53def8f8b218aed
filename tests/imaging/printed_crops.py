"""Crops of one digit amid other things: boxes, combs, ruling lines, dark strips of the background, neighbours."""

import cv2
import numpy as np

from tests.imaging.scene import Draw, Picture, Random, Scene, extent, lit


def line_width(scene: Scene, random: Random) -> float:
    return min(random.uniform(1, 6), max(1.0, 0.05 * scene.short))


def sides(scene: Scene, random: Random, inset: float, thickness: float, names: str = "tblr") -> None:
    """Draws sides of a box, t(op), b(ottom), l(eft), r(ight), `inset` from the crop's edges, a little turned."""
    angle = np.radians(random.uniform(-5, 5)) if random.random() < 0.5 else 0.0
    h, w = scene.height, scene.width
    near = inset + thickness / 2
    corners = np.array([[near, near], [w - near, near], [w - near, h - near], [near, h - near]]) - (w / 2, h / 2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    a, b, c, d = (tuple(point) for point in corners @ turn + (w / 2, h / 2))
    for name, start, end in (("t", a, b), ("r", b, c), ("b", d, c), ("l", a, d)):
        if name in names:
            scene.line(start, end, thickness)


def place_inside(scene: Scene, image: Picture, random: Random, inset: float) -> None:
    share = 1 - 2 * inset / scene.height
    scene.put_centred(image, random, (0.55 * share, 0.75 * share))


def boxed(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    lit(scene, random)
    thickness, inset = line_width(scene, random), min(random.uniform(0, 10), 0.08 * scene.short)
    sides(scene, random, inset, thickness)
    place_inside(scene, image, random, inset + thickness)
    return scene.content(random)


def box_with_gaps(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    thickness, inset = line_width(scene, random), min(random.uniform(0, 10), 0.08 * scene.short)
    sides(scene, random, inset, thickness)
    for _ in range(random.integers(1, 4)):
        y, x = random.integers(0, scene.height), random.integers(0, scene.width)
        size = max(2, scene.short // 8)
        scene.printed[max(0, y - size) : y + size, max(0, x - size) : x + size] = 0
    place_inside(scene, image, random, inset + thickness)
    return scene.content(random)


def touching_box(image: Picture, random: Random) -> bytes:
    """One end of the digit crosses a line of its box."""
    scene = Scene.draw(random)
    thickness, inset = line_width(scene, random), min(random.uniform(0, 8), 0.06 * scene.short)
    sides(scene, random, inset, thickness)
    w, h = extent(image)
    height = min(random.uniform(0.6, 0.8) * scene.height, 0.65 * scene.width * h / w)
    deep = inset + thickness * random.uniform(0.1, 0.9)
    top = scene.height - deep - height if random.random() < 0.5 else deep
    scene.put(image, top, (scene.width - height * w / h) * random.uniform(0.4, 0.6), height)
    return scene.content(random)


def box_off_centre(image: Picture, random: Random) -> bytes:
    """The crop is cut beside the box, so that lines lie within it and those of the next cell show."""
    scene = Scene.draw(random)
    shift = tuple(random.uniform(-0.14, 0.14, 2))
    off_centre_box(scene, random, shift)
    scene.put_centred(image, random, (0.5, 0.62))
    return scene.content(random)


def off_centre_box(scene: Scene, random: Random, shift: tuple[float, ...]) -> None:
    """Draws a box about as large as the crop, `shift` from its middle as shares of height and width; and the next boxes."""
    thickness, inset = line_width(scene, random), random.uniform(0.05, 0.1)
    pitch = 1 - 2 * inset + random.choice([0.0, random.uniform(0.06, 0.2)])
    x0, y0 = (inset + shift[1]) * scene.width, (inset + shift[0]) * scene.height
    wide, high = (1 - 2 * inset) * scene.width, (1 - 2 * inset) * scene.height
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            x, y = x0 + across * pitch * scene.width, y0 + down * pitch * scene.height
            corners = [(x, y), (x + wide, y), (x + wide, y + high), (x, y + high)]
            for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
                scene.line(start, end, thickness)


def dashed_box(image: Picture, random: Random) -> bytes:
    """A box of dashes, or of dots."""
    scene = Scene.draw(random)
    thickness, inset = max(1.5, line_width(scene, random)), min(random.uniform(2, 10), 0.08 * scene.short)
    sides(scene, random, inset, thickness)
    dash = max(2.0, random.uniform(0.02, 0.07) * scene.short)
    y, x = np.indices(scene.printed.shape)
    scene.printed[(x + y) % (2 * dash) < dash] = 0
    place_inside(scene, image, random, inset + thickness)
    return scene.content(random)


def dotted_ruling(image: Picture, random: Random) -> bytes:
    """Level lines of dots, or of short dashes, cross the digit."""
    scene = Scene.draw(random)
    rule(scene, random, min(line_width(scene, random), 0.02 * scene.short + 0.6), upright=False)
    dash = max(2.0, random.uniform(0.02, 0.05) * scene.short)
    scene.printed[:, np.arange(scene.width) % (2 * dash) < dash] = 0
    scene.put_centred(image, random)
    return scene.content(random)


def comb(image: Picture, random: Random) -> bytes:
    """A line below, and short bars at its ends."""
    scene = Scene.draw(random)
    thickness, inset = line_width(scene, random), min(random.uniform(0, 10), 0.08 * scene.short)
    sides(scene, random, inset, thickness, "b")
    tall = random.uniform(0.2, 1.0) * scene.height
    for x in (inset + thickness / 2, scene.width - inset - thickness / 2):
        scene.line((x, scene.height - inset), (x, scene.height - tall), thickness)
    place_inside(scene, image, random, inset + thickness)
    return scene.content(random)


def underlined(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    lit(scene, random)
    top, left, height, width = scene.put_centred(image, random, (0.5, 0.66))
    thickness = line_width(scene, random)
    y = top + height + thickness / 2 + random.uniform(0.04, 0.12) * scene.height
    if random.random() < 0.5:
        ends = (-2.0, scene.width + 2.0)
    else:
        ends = (
            max(left - random.uniform(0.05, 0.3) * scene.width, 1),
            min(left + width + random.uniform(0.05, 0.3) * scene.width, scene.width - 1),
        )
    askew = np.tan(np.radians(random.uniform(-5, 5))) * (ends[1] - ends[0]) / 2
    scene.line((ends[0], y - askew), (ends[1], y + askew), thickness)
    return scene.content(random)


def rule(scene: Scene, random: Random, thickness: float, *, upright: bool) -> None:
    pitch = random.uniform(0.15, 0.4) * scene.height
    askew = np.tan(np.radians(random.uniform(-2, 2)))
    extent, length = (scene.width, scene.height) if upright else (scene.height, scene.width)
    at = random.uniform(0, pitch)
    while at < extent:
        start, end = (-1.0, at - askew * length / 2), (length + 1.0, at + askew * length / 2)
        scene.line(start[::-1] if upright else start, end[::-1] if upright else end, thickness)
        at += pitch


def ruled(image: Picture, random: Random) -> bytes:
    """Lines of a light print cross the digit."""
    scene = Scene.draw(random)
    scene.print_level = scene.paper - (scene.paper - scene.pen) * random.uniform(0.15, 1.0)
    rule(scene, random, min(line_width(scene, random), 0.02 * scene.short + 0.6), upright=False)
    scene.put_centred(image, random)
    return scene.content(random)


def squared(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    scene.print_level = scene.paper - (scene.paper - scene.pen) * random.uniform(0.15, 0.8)
    thickness = min(line_width(scene, random), 0.02 * scene.short + 0.6)
    for upright in (False, True):
        rule(scene, random, thickness, upright=upright)
    scene.put_centred(image, random)
    return scene.content(random)


def dark_strips(image: Picture, random: Random) -> bytes:
    """A belt, a table or a scanner's border along one to four edges, also askew."""
    scene = Scene.draw(random)
    lit(scene, random)
    scene.print_level = random.uniform(0.0, 0.3)
    top, left, height, width = scene.put_centred(image, random, (0.5, 0.66))
    room = {"t": top, "b": scene.height - top - height, "l": left, "r": scene.width - left - width}
    for name in random.permutation(list("tblr"))[: random.integers(1, 5)]:
        length = scene.width if name in "tb" else scene.height
        askew = np.tan(np.radians(random.uniform(-3, 3))) * length / 2 if random.random() < 0.5 else 0.0
        deep = max(1.0, random.uniform(0.1, 0.85) * room[str(name)] - abs(askew))
        x0, x1, y0, y1 = -1.0, scene.width + 1.0, -1.0, scene.height + 1.0
        outline = {
            "t": [(x0, y0), (x1, y0), (x1, deep + askew), (x0, deep - askew)],
            "b": [(x0, y1), (x1, y1), (x1, scene.height - deep + askew), (x0, scene.height - deep - askew)],
            "l": [(x0, y0), (x0, y1), (deep + askew, y1), (deep - askew, y0)],
            "r": [(x1, y0), (x1, y1), (scene.width - deep + askew, y1), (scene.width - deep - askew, y0)],
        }[str(name)]
        cv2.fillPoly(scene.printed, [np.round(np.array(outline) * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
    return scene.content(random)


def neighbours(image: Picture, random: Random) -> bytes:
    """Parts of the next digits stick into the crop from its sides."""
    scene = Scene.draw(random)
    top, left, height, width = scene.put_centred(image, random, (0.5, 0.66))
    for side in random.permutation(2)[: random.integers(1, 3)]:
        other = image[:, ::-1] if random.random() < 0.5 else image[::-1]
        room = left if side == 0 else scene.width - left - width
        deep = room * random.uniform(0.2, 0.6)
        w, h = extent(other)
        wide = height * w / h
        scene.put(other, top + random.uniform(-0.1, 0.1) * height, deep - wide if side == 0 else scene.width - deep, height)
    return scene.content(random)


PRINTED_KINDS: dict[str, Draw] = {
    "box": boxed,
    "box with gaps": box_with_gaps,
    "box that the digit touches": touching_box,
    "box off centre": box_off_centre,
    "dashed box": dashed_box,
    "comb": comb,
    "underlined": underlined,
    "ruled paper": ruled,
    "dotted rulings": dotted_ruling,
    "squared paper": squared,
    "dark strips": dark_strips,
    "neighbours at the sides": neighbours,
}
"""How to draw a crop of each kind, from a framed digit, (28, 28) uint8, 0 paper to 255 ink."""
