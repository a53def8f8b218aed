"""Detects objects in a photo with a pre-trained YOLO network, which is loaded from Darknet's files."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from training import figures
from training.studies import darknet, yolov3
from training.studies.darknet import Detector, Head
from training.studies.workbench import DetectionError, Workbench

THRESHOLD = 0.25  # lowest probability that is reported; Darknet's default
OVERLAP = 0.45  # intersection over union above which non-maximum suppression drops a box; Darknet's default
GREY = 0.5


@dataclass(frozen=True)
class Detection:
    """One detected object.

    Attributes:
        name: class name.
        probability: probability, 0 to 1, that an object of this class is in the box.
        box: left, top, right, bottom in pixels of the photo.
    """

    name: str
    probability: float
    box: tuple[float, float, float, float]


def detection(bench: Workbench) -> str:
    """Draws and lists the objects detected in the user's photo, and counts the cars and buses that the notebook asks for."""
    files = bench.detector_files
    if files is None:
        raise DetectionError("detection needs a photo, and a detector's weights and class names")
    photo = read_photo(files.photo)
    names = [line for line in files.names.read_text(errors="replace").splitlines() if line.strip()]
    try:
        detector = darknet.build(files.cfg.read_text(errors="replace") if files.cfg else yolov3.cfg())
    except DetectionError as error:
        raise DetectionError(f"{files.cfg}: {error}") from error
    classes = {head.classes for head in detector.heads}
    if classes != {len(names)}:
        raise DetectionError(f"{files.names} names {len(names)} class(es), but the network has {min(classes)}")
    darknet.load_weights(detector, files.weights)
    found = detect(detector, photo, names)

    bench.photo("detection", draw(photo, found))
    bench.table(
        "detection",
        ["class", "probability", "left", "top", "right", "bottom"],
        [[item.name, f"{item.probability:.4f}", *(f"{edge:.1f}" for edge in item.box)] for item in found],
    )
    counts = Counter(item.name for item in found)
    listed = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "nothing"
    asked_for = " and ".join(f"{counts[name]} {name}" for name in ("car", "bus"))
    return (
        f"a network of {detector.network.count_params():,} parameters detects in {files.photo.name}: {listed}; "
        f"of the notebook's cars and buses: {asked_for}"
    )


def detect(detector: Detector, photo: Image.Image, names: list[str]) -> list[Detection]:
    """Returns the objects in an RGB `photo`, most probable first. One box may be reported under two classes."""
    height, width, channels = detector.network.input_shape[1:]
    if channels != 3:
        raise DetectionError(f"the network takes {channels} channels, but a photo has 3")
    colours = np.asarray(photo, np.float32) / 255  # (rows, columns, 3)
    pixels, (left, top, across, down) = _fit_into(colours, height, width, detector.letter_box)
    maps = keras.tree.flatten(detector.network.predict(pixels[None], verbose=0))
    decoded = [decode(values[0], head, height, width) for values, head in zip(maps, detector.heads, strict=True)]
    boxes, probabilities = (np.concatenate(parts) for parts in zip(*decoded, strict=True))  # (B, 4), (B, classes)

    boxes = (boxes - [left, top, left, top]) / [across, down, across, down]  # shares of the photo's width and height
    boxes = np.clip(boxes, 0, 1) * [photo.width, photo.height, photo.width, photo.height]
    found = []
    for number, name in enumerate(names):
        kept = suppress(boxes, probabilities[:, number])
        found += [Detection(name, float(probabilities[box, number]), tuple(boxes[box].tolist())) for box in kept]
    return sorted(found, key=lambda item: -item.probability)


def decode(values: np.ndarray, head: Head, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the map of one head.

    Args:
        values: (rows, columns, A * (5 + classes)): for each anchor x, y, width, height, objectness, classes, all
            untransformed.
        head: decoding parameters of the map.
        height: height of the network's input, pixels.
        width: width of the network's input, pixels.

    Returns:
        Left, top, right, bottom as shares of the network's input, (rows * columns * A, 4), and the probability of each
        class, (rows * columns * A, classes).

    Source: Redmon & Farhadi 2018, arXiv 1804.02767, section 2.
    """
    rows, columns = values.shape[:2]
    values = values.reshape(rows, columns, len(head.anchors), 5 + head.classes).astype(np.float64)
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)[:, :, None]  # (rows, columns, 1, 2): x, y
    inside = head.scale * (_sigmoid(values[..., :2]) - 0.5) + 0.5
    centres = (cells + inside) / [columns, rows]
    # The bound of 50 prevents an overflow for the output of a damaged network.
    sizes = np.exp(np.minimum(values[..., 2:4], 50)) * head.anchors / [width, height]
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1)
    probabilities = _sigmoid(values[..., 4:5]) * _sigmoid(values[..., 5:])
    return boxes.reshape(-1, 4), probabilities.reshape(-1, head.classes)


def suppress(boxes: np.ndarray, probabilities: np.ndarray) -> list[int]:
    """Applies non-maximum suppression to the boxes of one class.

    Args:
        boxes: (B, 4): left, top, right, bottom.
        probabilities: (B,) probability of the class.

    Returns:
        Indices of the boxes to report, most probable first.
    """
    left, top, right, bottom = boxes.T
    areas = (right - left) * (bottom - top)
    remaining = np.flatnonzero(probabilities > THRESHOLD)
    remaining = remaining[np.argsort(-probabilities[remaining], kind="stable")]
    kept = []
    while remaining.size:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        across = np.minimum(right[best], right[remaining]) - np.maximum(left[best], left[remaining])
        down = np.minimum(bottom[best], bottom[remaining]) - np.maximum(top[best], top[remaining])
        shared = np.maximum(across, 0) * np.maximum(down, 0)
        remaining = remaining[shared <= OVERLAP * (areas[best] + areas[remaining] - shared)]
    return kept


def read_photo(path: Path) -> Image.Image:
    """Reads the photo at `path` in RGB, upright by its EXIF orientation; DetectionError if it is not an image."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's errors for damaged files
        raise DetectionError(f"cannot read a photo from {path}: {getattr(error, 'strerror', None) or error}") from error


def draw(photo: Image.Image, found: list[Detection]) -> Image.Image:
    """Returns a copy of `photo` with a frame, the class name and the probability of each detection."""
    drawn = photo.copy()
    brush, line = ImageDraw.Draw(drawn), max(2, min(photo.size) // 200)
    height = max(10, min(photo.size) // 30)
    font = ImageFont.load_default(height)
    for item in found:
        brush.rectangle(item.box, outline=figures.ORANGE, width=line)
    labels: list[tuple[float, float, float, float]] = []
    for item in found:
        label, corner = f"{item.name} {item.probability:.0%}", (item.box[0] + 2 * line, item.box[1] + 2 * line)
        area = brush.textbbox(corner, label, font)
        while any(_overlap(area, other) for other in labels):  # moves down, so that labels stay legible
            corner = (corner[0], corner[1] + height)
            area = brush.textbbox(corner, label, font)
        labels.append(area)
        brush.rectangle(area, fill=figures.ORANGE, outline=figures.ORANGE, width=line)
        brush.text(corner, label, fill="white", font=font)
    return drawn


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _fit_into(
    colours: np.ndarray, height: int, width: int, letter_box: bool
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Fits a photo into (height, width): stretched, or in its original proportions between grey bars.

    Returns:
        (height, width, 3) float32, and the photo's left, top, width and height as shares of this area.
    """
    if not letter_box:
        return _resize(colours, height, width), (0, 0, 1, 1)
    scale = min(height / colours.shape[0], width / colours.shape[1])
    down, across = (max(1, int(length * scale)) for length in colours.shape[:2])
    top, left = (height - down) // 2, (width - across) // 2
    pixels = np.full((height, width, 3), GREY, np.float32)
    pixels[top : top + down, left : left + across] = _resize(colours, down, across)
    return pixels, (left / width, top / height, across / width, down / height)


def _resize(colours: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes bilinearly, with aligned corners and without smoothing, as Darknet's `resize_image` does."""
    for axis, length in ((0, height), (1, width)):
        positions = np.linspace(0, colours.shape[axis] - 1, length)
        before = positions.astype(int)
        after = np.minimum(before + 1, colours.shape[axis] - 1)
        share = (positions - before).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        colours = colours.take(before, axis) * (1 - share) + colours.take(after, axis) * share
    return colours


def _sigmoid(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = 0.5 + 0.5 * np.tanh(values / 2)  # equals 1 / (1 + exp(-x)), and can't overflow
    return result
