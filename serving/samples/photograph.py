"""Photographs of digits, synthesized from framed images as a camera over a conveyor might take them."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

HEIGHT, WIDTH = 140, 90

Images = NDArray[np.uint8]


def photograph(
    image: Images, random: np.random.Generator, *, light_ink: bool = False, lines: int = 0, specks: int = 0
) -> bytes:
    """Draws a digit at a random position on unevenly lit, grainy paper.

    Args:
        image: (28, 28) uint8, 0 paper, 255 ink.
        random: draws size, position, light and pen.
        light_ink: True for light ink on dark paper.
        lines: number of ruling lines, at random positions, which may cross the digit.
        specks: number of specks of dirt.

    Returns:
        A JPEG file of 90x140 pixels.
    """
    scale = random.uniform(2, 3)
    side, margin = int(28 * scale), int(4 * scale)
    left, top = (int(random.integers(-margin, size - side + margin)) for size in (WIDTH, HEIGHT))
    canvas = Image.new("L", (WIDTH, HEIGHT), 0)
    canvas.paste(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), (left, top))
    brush = ImageDraw.Draw(canvas)
    for _ in range(lines):
        x, y, askew, width = *random.uniform(5, WIDTH - 5, 2), random.uniform(-1, 1), int(random.integers(1, 4))
        across = random.random() < 0.5
        brush.line([(0, y), (WIDTH, y + askew)] if across else [(x, 0), (x + askew, HEIGHT)], fill=200, width=width)
    for _ in range(specks):
        x, y, radius = random.uniform(0, WIDTH), random.uniform(0, HEIGHT), random.uniform(0.5, 2)
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    ink = np.asarray(canvas) / 255
    down, right = np.meshgrid(np.linspace(-1, 1, HEIGHT), np.linspace(-1, 1, WIDTH), indexing="ij")
    paper = 170 + random.uniform(-35, 35) * down + random.uniform(-35, 35) * right + random.normal(0, 4, ink.shape)
    return encode(_grey(paper, ink, random.uniform(20, 90), light_ink=light_ink), "JPEG", quality=70)


def encode(grey: Images, form: str, **options: int) -> bytes:
    """Encodes (height, width) uint8 grey levels as an image file."""
    content = io.BytesIO()
    Image.fromarray(grey).save(content, form, **options)
    return content.getvalue()


def _grey(paper: NDArray[np.float64], ink: NDArray[np.float64], pen: float, *, light_ink: bool = False) -> Images:
    dark = paper * (1 - ink) + pen * ink
    return np.clip(255 - dark if light_ink else dark, 0, 255).astype(np.uint8)
