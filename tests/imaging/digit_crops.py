"""Crops of one digit, kind by kind, as cameras cut them: its size in the crop, the light, the pen, the file."""

import io

import cv2
import numpy as np
from PIL import Image

from tests.imaging.printed_crops import PRINTED_KINDS
from tests.imaging.scene import Draw, Layer, Picture, Random, Scene, encode, extent, lit


def plain(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    lit(scene, random)
    scene.put_centred(image, random)
    return scene.content(random)


def any_size(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random, (24, 400), (0.4, 2.0))
    lit(scene, random)
    scene.put_centred(image, random, (0.55, 0.85))
    return scene.content(random)


def tight(image: Picture, random: Random) -> bytes:
    """The digit touches every edge of the crop."""
    w, h = extent(image)
    height = np.exp(random.uniform(*np.log((30, 200))))
    scene = Scene(
        max(8, round(height)), max(6, round(height * w / h)), random.uniform(0.7, 0.98), random.uniform(0.08, 0.35), 0
    )
    scene.put(image, 0, 0, height)
    return scene.content(random)


def small(image: Picture, random: Random) -> bytes:
    """The digit has a quarter to two fifths of the crop's height, anywhere."""
    scene = Scene.draw(random, (110, 300))
    lit(scene, random)
    w, h = extent(image)
    height = scene.height * random.uniform(0.26, 0.4)
    scene.put(
        image,
        random.uniform(0.15, 0.85) * (scene.height - height),
        random.uniform(0.1, 0.9) * (scene.width - height * w / h),
        height,
    )
    return scene.content(random)


def half_plane(scene: Scene, random: Random) -> Layer:
    """Signed distance in pixels from a straight edge somewhere across the crop."""
    x, y = scene.grid()
    angle, offset = random.uniform(0, 2 * np.pi), random.uniform(-0.6, 0.6)
    distance: Layer = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y - np.float32(offset)
    return distance * np.float32(scene.short / 2)


def hard_shadow(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    scene.put_centred(image, random)
    scene.light *= 1 - np.float32(random.uniform(0.2, 0.55)) * np.clip(half_plane(scene, random) + 0.5, 0, 1)
    return scene.content(random)


def soft_shadow(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    scene.put_centred(image, random)
    soft = scene.short * random.uniform(0.05, 0.5)
    scene.light *= 1 - np.float32(random.uniform(0.2, 0.6)) * np.clip(half_plane(scene, random) / soft + 0.5, 0, 1)
    return scene.content(random)


def shade_band(scene: Scene, random: Random) -> None:
    """Dims the light along a band of a twelfth to two fifths of the crop, with a hard edge on both of its sides."""
    edge = half_plane(scene, random)
    wide = random.uniform(0.12, 0.4) * scene.short
    band = np.clip(np.minimum(edge, np.float32(wide) - edge) + 0.5, 0, 1)
    scene.light *= 1 - np.float32(random.uniform(0.35, 0.7)) * band


def shadow_band(image: Picture, random: Random) -> bytes:
    """The shadow of a finger, a cable or a ruler."""
    scene = Scene.draw(random)
    scene.put_centred(image, random)
    shade_band(scene, random)
    return scene.content(random)


def glare(image: Picture, random: Random) -> bytes:
    """A reflection washes out a part of the ink."""
    scene = Scene.draw(random)
    scene.put_centred(image, random)
    x, y = scene.grid()
    across, down = random.uniform(-0.8, 0.8, 2)
    spot = np.exp(-((x - across) ** 2 + (y - down) ** 2) / (2 * random.uniform(0.16, 0.5) ** 2)).astype(np.float32)
    pixels = scene.grey(random).astype(np.float32)
    pixels += spot * (255 - pixels) if random.random() < 0.5 else 150 * spot
    return encode(np.clip(pixels, 0, 255).astype(np.uint8), random)


def cut_close(image: Picture, random: Random) -> bytes:
    """Every edge of the crop cuts a little off the digit."""
    w, h = extent(image)
    height = random.uniform(60, 120)
    lost = random.uniform(0.01, 0.03) * height
    size = (max(8, round(height - 2 * lost)), max(6, round(height * w / h - 2 * lost)))
    scene = Scene(*size, random.uniform(0.7, 0.98), random.uniform(0.08, 0.35), 0)
    scene.put(image, -lost, -lost, height)
    return scene.content(random)


def lamp(image: Picture, random: Random) -> bytes:
    """A bright spot in dim light."""
    scene = Scene.draw(random)
    scene.put_centred(image, random)
    x, y = scene.grid()
    across, down = random.uniform(-0.6, 0.6, 2)
    spread = random.uniform(0.3, 1.0)
    dim = random.uniform(0.25, 0.6)
    scene.light *= dim + (1 - dim) * np.exp(-(((x - across) ** 2 + (y - down) ** 2) / (2 * spread**2))).astype(np.float32)
    return scene.content(random)


def faint(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    scene.pen = scene.paper - random.uniform(0.12, 0.25)
    lit(scene, random)
    scene.put_centred(image, random)
    return encode(scene.grey(random, (0, 2)), random)


def light_ink(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    scene.paper, scene.pen = random.uniform(0.05, 0.4), random.uniform(0.75, 0.98)
    lit(scene, random)
    scene.put_centred(image, random)
    return scene.content(random)


_COLOURS = [  # paper, then ink: pairs whose grey levels may be equal
    ((250, 240, 120), (40, 60, 160)),
    ((240, 150, 150), (150, 30, 40)),
    ((120, 190, 120), (190, 60, 60)),
    ((250, 190, 120), (60, 150, 220)),
    ((150, 170, 230), (200, 120, 60)),
    ((230, 180, 210), (90, 120, 70)),
    ((200, 120, 60), (40, 60, 40)),
    ((235, 235, 235), (230, 210, 40)),
    ((130, 130, 130), (200, 90, 90)),
]


def coloured(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random)
    scene.put_centred(image, random)
    lit(scene, random)
    paper, pen = (np.array(colour) for colour in _COLOURS[random.integers(len(_COLOURS))])
    pixels = (paper + (pen - paper) * scene.ink[..., None]) * scene.light[..., None]
    pixels += random.normal(0, random.uniform(0, 4), (*scene.ink.shape, 1))
    return encode(np.clip(np.round(pixels), 0, 255).astype(np.uint8), random)


def deep(image: Picture, random: Random) -> bytes:
    """10, 12, 14 or 16 bits a pixel, stored in 16."""
    scene = Scene.draw(random)
    lit(scene, random)
    scene.put_centred(image, random)
    bits = int(random.choice([10, 12, 14, 16]))
    return encode((scene.grey(random).astype(np.float64) / 255 * (2**bits - 1)).astype(np.uint16))


def two_pictures(image: Picture, random: Random) -> bytes:
    """A JPEG file with a second picture, as phones write them."""
    scene = Scene.draw(random)
    scene.put_centred(image, random)
    content = io.BytesIO()
    first, second = (Image.fromarray(picture) for picture in (scene.grey(random), Scene.draw(random).grey(random)))
    first.save(content, "MPO", save_all=True, append_images=[second])
    return content.getvalue()


def transparent(image: Picture, random: Random) -> bytes:
    """Ink on a background that is transparent, of any colour beneath."""
    scene = Scene.draw(random)
    scene.put_centred(image, random)
    pixels = np.zeros((*scene.ink.shape, 4), np.uint8)
    pixels[...] = random.integers(0, 256)
    pixels[scene.ink > 0, :3] = random.integers(0, 80) if random.random() < 0.7 else random.integers(200, 256)
    pixels[..., 3] = np.round(scene.ink * 255)
    return encode(pixels)


def thick_pen(image: Picture, random: Random) -> bytes:
    scene = Scene.draw(random, (110, 260))
    scene.put_centred(image, random, (0.5, 0.62))
    size = 2 * max(1, round(random.uniform(0.01, 0.025) * scene.height)) + 1
    scene.ink = cv2.dilate(scene.ink, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    return scene.content(random)


DIGIT_KINDS: dict[str, Draw] = {
    "plain": plain,
    "24 to 400 pixels, any shape": any_size,
    "tight, no margin": tight,
    "cut a little too close": cut_close,
    "small in its crop": small,
    **PRINTED_KINDS,
    "hard shadow": hard_shadow,
    "soft shadow": soft_shadow,
    "band of shadow": shadow_band,
    "lamp": lamp,
    "glare": glare,
    "faint ink": faint,
    "light ink on dark paper": light_ink,
    "coloured ink and paper": coloured,
    "10 to 16 bits": deep,
    "two pictures in a file": two_pictures,
    "transparent": transparent,
    "thick pen": thick_pen,
}
"""How to draw a crop of each kind, from a framed digit, (28, 28) uint8, 0 paper to 255 ink."""
