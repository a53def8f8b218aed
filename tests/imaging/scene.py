"""A crop as a camera cuts it, drawn layer by layer: paper, printed lines, ink and light; then noise and a file format."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Layer = NDArray[np.float32]
Picture = NDArray[np.uint8]
Random = np.random.Generator
Draw = Callable[[Picture, Random], bytes]

_SHIFT = 4  # binary digits after the point of OpenCV's coordinates


@dataclass
class Scene:
    """One crop before the camera.

    Attributes:
        height: rows, in pixels.
        width: columns, in pixels.
        paper: reflectance of the paper, 0 to 1.
        pen: reflectance of the pen's ink.
        print_level: reflectance of the printed lines.
        ink: (height, width) float32, share of each pixel that the pen covers.
        printed: (height, width) float32, share of each pixel that printing covers.
        light: (height, width) float32, brightness of the light, 1 full.
    """

    height: int
    width: int
    paper: float
    pen: float
    print_level: float
    ink: Layer = field(init=False)
    printed: Layer = field(init=False)
    light: Layer = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.height, self.width)
        self.ink, self.printed, self.light = (
            np.zeros(shape, np.float32),
            np.zeros(shape, np.float32),
            np.ones(shape, np.float32),
        )

    @classmethod
    def draw(
        cls, random: Random, longest: tuple[float, float] = (60, 260), aspect: tuple[float, float] = (0.6, 1.0)
    ) -> "Scene":
        """Draws blank paper. `longest` bounds the longer side in pixels, `aspect` the width over the height."""
        side, ratio = np.exp(random.uniform(*np.log(longest))), random.uniform(*aspect)
        height, width = (side, side * ratio) if ratio < 1 else (side / ratio, side)
        paper, pen = random.uniform(0.7, 0.98), random.uniform(0.08, 0.35)
        return cls(max(8, round(height)), max(8, round(width)), paper, pen, random.uniform(0.05, 0.5))

    @property
    def short(self) -> int:
        """Shorter side, in pixels."""
        return min(self.height, self.width)

    def put(self, image: NDArray[np.uint8], top: float, left: float, height: float) -> None:
        """Puts ink of an image, trimmed, at a place given in pixels; strokes stay crisp at any size."""
        x, y, w, h = cv2.boundingRect((image > 60).astype(np.uint8))
        width = height * w / h
        shift = np.array([[width / w, 0, left - x * width / w], [0, height / h, top - y * height / h]])
        pixel = np.array([[1, 0, (width / w - 1) / 2], [0, 1, (height / h - 1) / 2]])
        shift[:, 2] += pixel[:, 2]
        grown = cv2.warpAffine(
            image.astype(np.float32) / 255,
            shift,
            (self.width, self.height),
            flags=cv2.INTER_CUBIC if height > h else cv2.INTER_LINEAR,
        )
        self.ink = np.maximum(self.ink, np.clip((grown - 0.5) * max(1.0, height / h / 1.5) + 0.5, 0, 1))

    def put_centred(
        self, image: NDArray[np.uint8], random: Random, share: tuple[float, float] = (0.5, 0.72)
    ) -> tuple[float, ...]:
        """Puts a digit near the middle. `share` bounds its height over the crop's. Returns top, left, height and width."""
        w, h = extent(image)
        height = min(random.uniform(*share) * self.height, 0.8 * share[1] * self.width * h / w)
        width = height * w / h
        top = (self.height - height) * random.uniform(0.4, 0.6)
        left = (self.width - width) * random.uniform(0.4, 0.6)
        self.put(image, top, left, height)
        return top, left, height, width

    def line(self, start: tuple[float, float], end: tuple[float, float], thickness: float, *, printed: bool = True) -> None:
        """Draws a straight line between points (x, y), printed or by the pen, with a soft edge."""
        layer = self.printed if printed else self.ink
        scale = 4  # drawn at four times the size, so that a thickness below one pixel is grey
        large = np.zeros((self.height * scale, self.width * scale), np.uint8)
        points = [tuple(round(value * scale * (1 << _SHIFT)) for value in point) for point in (start, end)]
        cv2.line(large, points[0], points[1], 255, max(1, round(thickness * scale)), cv2.LINE_8, _SHIFT)
        np.maximum(
            layer, cv2.resize(large, (self.width, self.height), interpolation=cv2.INTER_AREA) / np.float32(255), out=layer
        )

    def grid(self) -> tuple[Layer, Layer]:
        """Returns coordinates (height, width): x and y from -1 to 1."""
        x, y = np.meshgrid(np.linspace(-1, 1, self.width), np.linspace(-1, 1, self.height))
        return x.astype(np.float32), y.astype(np.float32)

    def grey(self, random: Random, noise: tuple[float, float] = (0, 5)) -> NDArray[np.uint8]:
        """Takes the picture: (height, width) uint8, 0 black to 255 white."""
        reflected = self.paper + (self.print_level - self.paper) * self.printed
        reflected += (self.pen - reflected) * self.ink
        picture = 255 * reflected * self.light + random.normal(0, random.uniform(*noise), self.ink.shape)
        return np.clip(np.round(picture), 0, 255).astype(np.uint8)

    def content(self, random: Random) -> bytes:
        """Takes the picture and encodes it as a PNG, or as a JPEG of any usual quality."""
        return encode(self.grey(random), random)


def extent(image: NDArray[np.uint8]) -> tuple[int, int]:
    """Returns width and height of the ink of a framed image, in its pixels."""
    _, _, width, height = cv2.boundingRect((image > 60).astype(np.uint8))
    return width, height


def encode(pixels: NDArray[Any], random: Random | None = None) -> bytes:
    """Encodes pixels, (height, width) or (height, width, 3) in RGB: as a PNG without `random`, else as a PNG or a JPEG."""
    if random is not None and random.random() < 0.5:
        form, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(50, 96))]
    else:
        form, options = ".png", []
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    done, content = cv2.imencode(form, pixels, options)
    assert done
    return content.tobytes()


def lit(scene: Scene, random: Random) -> None:
    """Dims the light of a scene slowly towards one side."""
    x, y = scene.grid()
    right, down = random.uniform(-0.15, 0.15, 2)
    scene.light *= np.float32(0.85) + right * x + down * y
