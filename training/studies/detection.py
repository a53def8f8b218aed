"""Things in a photo: a pre-trained YOLO network, read from Darknet's files, finds and names them."""

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

THRESHOLD = 0.25  # least probability of what is reported: Darknet's own, as is the next
OVERLAP = 0.45  # of two boxes of one class that overlap by more, the less probable one is dropped
GREY = 0.5


@dataclass(frozen=True)
class Detection:
    """One thing that was found.

    Attributes:
        name: its class.
        probability: of its being there and of that class, 0 to 1.
        box: left, top, right, bottom in pixels of the photo.
    """

    name: str
    probability: float
    box: tuple[float, float, float, float]


def detection(bench: Workbench) -> str:
    """Draws what a detector finds in the photo that the user brings; lists it; and says whether cars and buses are there."""
    brought = bench.brought
    if brought is None:
        raise DetectionError("detection needs a photo, and a detector's weights and names")
    photo = read_photo(brought.photo)
    names = [line for line in brought.names.read_text(errors="replace").splitlines() if line.strip()]
    try:
        detector = darknet.build(brought.cfg.read_text(errors="replace") if brought.cfg else yolov3.cfg())
    except DetectionError as error:
        raise DetectionError(f"{brought.cfg}: {error}") from error
    classes = {head.classes for head in detector.heads}
    if classes != {len(names)}:
        raise DetectionError(f"{brought.names} names {len(names)} class(es), the network has {min(classes)}")
    darknet.load_weights(detector, brought.weights)
    found = detect(detector, photo, names)

    bench.photo("detection", draw(photo, found))
    bench.table(
        "detection",
        ["class", "probability", "left", "top", "right", "bottom"],
        [[thing.name, f"{thing.probability:.4f}", *(f"{edge:.1f}" for edge in thing.box)] for thing in found],
    )
    counts = Counter(thing.name for thing in found)
    listed = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "nothing"
    asked = " and ".join(f"{counts[name]} {name}" for name in ("car", "bus"))
    return (
        f"a network of {detector.network.count_params():,} parameters finds in {brought.photo.name}: {listed}; "
        f"of the notebook's cars and buses: {asked}"
    )


def detect(detector: Detector, photo: Image.Image, names: list[str]) -> list[Detection]:
    """What `detector` finds in an RGB `photo`, most probable first. A box may be named twice, with two classes."""
    height, width, channels = detector.network.input_shape[1:]
    if channels != 3:
        raise DetectionError(f"the network takes {channels} channels, a photo has 3")
    colours = np.asarray(photo, np.float32) / 255  # (rows, columns, 3)
    pixels, (left, top, across, down) = _place(colours, height, width, detector.letter_box)
    maps = keras.tree.flatten(detector.network.predict(pixels[None], verbose=0))
    read = [decode(values[0], head, height, width) for values, head in zip(maps, detector.heads, strict=True)]
    boxes, probabilities = (np.concatenate(parts) for parts in zip(*read, strict=True))  # (B, 4), (B, classes)

    boxes = (boxes - [left, top, left, top]) / [across, down, across, down]  # shares of the photo's own width and height
    boxes = np.clip(boxes, 0, 1) * [photo.width, photo.height, photo.width, photo.height]
    found = []
    for number, name in enumerate(names):
        kept = suppress(boxes, probabilities[:, number])
        found += [Detection(name, float(probabilities[box, number]), tuple(boxes[box].tolist())) for box in kept]
    return sorted(found, key=lambda thing: -thing.probability)


def decode(values: np.ndarray, head: Head, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads one head's map: Redmon & Farhadi 2018, arXiv 1804.02767, section 2.

    Args:
        values: (rows, columns, A * (5 + classes)): for each anchor x, y, width, height, objectness, classes, all
            untransformed.
        head: of the map.
        height: of the network's input, pixels.
        width: likewise.

    Returns:
        Left, top, right, bottom as shares of the network's input, (rows * columns * A, 4), and the probability of each
        class, (rows * columns * A, classes).
    """
    rows, columns = values.shape[:2]
    values = values.reshape(rows, columns, len(head.anchors), 5 + head.classes).astype(np.float64)
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)[:, :, None]  # (rows, columns, 1, 2): x, y
    inside = head.scale * (_sigmoid(values[..., :2]) - 0.5) + 0.5
    centres = (cells + inside) / [columns, rows]
    sizes = np.exp(np.minimum(values[..., 2:4], 50)) * head.anchors / [width, height]  # a bound, or nonsense overflows
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1)
    probabilities = _sigmoid(values[..., 4:5]) * _sigmoid(values[..., 5:])
    return boxes.reshape(-1, 4), probabilities.reshape(-1, head.classes)


def suppress(boxes: np.ndarray, probabilities: np.ndarray) -> list[int]:
    """Which boxes of one class to report: each probable one that no more probable one overlaps. Most probable first.

    Args:
        boxes: (B, 4): left, top, right, bottom.
        probabilities: (B,) of the class.
    """
    left, top, right, bottom = boxes.T
    areas = (right - left) * (bottom - top)
    waiting = np.flatnonzero(probabilities > THRESHOLD)
    waiting = waiting[np.argsort(-probabilities[waiting], kind="stable")]
    kept = []
    while waiting.size:
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        across = np.minimum(right[best], right[waiting]) - np.maximum(left[best], left[waiting])
        down = np.minimum(bottom[best], bottom[waiting]) - np.maximum(top[best], top[waiting])
        shared = np.maximum(across, 0) * np.maximum(down, 0)
        waiting = waiting[shared <= OVERLAP * (areas[best] + areas[waiting] - shared)]
    return kept


def read_photo(path: Path) -> Image.Image:
    """The photo at `path` in RGB, turned as its camera was held; DetectionError if it is none."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's words for broken files
        raise DetectionError(f"cannot read a photo from {path}: {getattr(error, 'strerror', None) or error}") from error


def draw(photo: Image.Image, found: list[Detection]) -> Image.Image:
    """A copy of `photo` with a frame around each thing found, its name and its probability."""
    drawn = photo.copy()
    brush, line = ImageDraw.Draw(drawn), max(2, min(photo.size) // 200)
    height = max(10, min(photo.size) // 30)
    font = ImageFont.load_default(height)
    for thing in found:
        brush.rectangle(thing.box, outline=figures.ORANGE, width=line)
    labels: list[tuple[float, float, float, float]] = []
    for thing in found:
        label, corner = f"{thing.name} {thing.probability:.0%}", (thing.box[0] + 2 * line, thing.box[1] + 2 * line)
        place = brush.textbbox(corner, label, font)
        while any(_meet(place, other) for other in labels):  # below what is written there already
            corner = (corner[0], corner[1] + height)
            place = brush.textbbox(corner, label, font)
        labels.append(place)
        brush.rectangle(place, fill=figures.ORANGE, outline=figures.ORANGE, width=line)
        brush.text(corner, label, fill="white", font=font)
    return drawn


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _place(
    colours: np.ndarray, height: int, width: int, letter_box: bool
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Fits a photo into (height, width): stretched, or in its own proportions between grey bars.

    Returns:
        (height, width, 3) float32, and where the photo lies in it: left, top, width, height, as shares.
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
    """Bilinear, corners onto corners and without smoothing, as Darknet does it (`resize_image`)."""
    for axis, length in ((0, height), (1, width)):
        places = np.linspace(0, colours.shape[axis] - 1, length)
        before = places.astype(int)
        after = np.minimum(before + 1, colours.shape[axis] - 1)
        share = (places - before).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        colours = colours.take(before, axis) * (1 - share) + colours.take(after, axis) * share
    return colours


def _sigmoid(values: np.ndarray) -> np.ndarray:
    halves: np.ndarray = 0.5 + 0.5 * np.tanh(values / 2)  # overflows nowhere
    return halves
