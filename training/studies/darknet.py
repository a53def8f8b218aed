"""Detectors as Darknet keeps them: layers in a .cfg text, weights in a .weights file. A Keras network is made of the two.

What each layer computes is taken from Darknet itself (Redmon, https://pjreddie.com/darknet, and Bochkovskiy's successor,
https://github.com/AlexeyAB/darknet). A layer, or an option of one, that would change the result and is not known here is
refused: a network that is nearly the right one detects nearly nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from training.studies.darknet_cfg import Section, parse
from training.studies.workbench import DetectionError

Tensor = Any  # a symbolic tensor of Keras, which ships no types: (N, rows, columns, channels)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky": lambda x: keras.activations.leaky_relu(x, negative_slope=0.1),
    "relu": keras.activations.relu,
    "mish": keras.activations.mish,
    "swish": keras.activations.silu,
    "logistic": keras.activations.sigmoid,
}

# Options that change what a layer computes, and are not known here, with the value that leaves it as it is.
UNKNOWN = {
    **dict.fromkeys(("antialiasing", "binary", "xnor", "flipped", "cbn", "coordconv", "sway", "rotate", "stretch"), "0"),
    **dict.fromkeys(("stretch_sway", "maxpool_depth", "new_coords", "reverse"), "0"),
    **dict.fromkeys(("dilation", "scale"), "1"),
    **dict.fromkeys(("stride_x", "stride_y", "share_index", "weights_type"), "none"),
}


@dataclass(frozen=True)
class Head:
    """How a [yolo] layer's numbers are to be read.

    Attributes:
        anchors: (A, 2), width and height in pixels of the network's input, of the boxes that it adjusts.
        classes: how many kinds of things it tells apart.
        scale: how far a box's centre may lie outside of its own cell: 1 not at all (`scale_x_y`).
    """

    anchors: np.ndarray
    classes: int
    scale: float


@dataclass(frozen=True)
class Detector:
    """A network and how to read what it says.

    Attributes:
        network: float32 colours (N, height, width, 3), 0 to 1, to one map a head, (N, rows, columns, A * (5 + classes)).
        heads: how each map is to be read.
        letter_box: whether a photo keeps its proportions, between grey bars, or is stretched to the network's size.
        weighted: the layers that hold numbers, in the order of the file: convolutions, each with its normalisation or None.
    """

    network: keras.Model
    heads: list[Head]
    letter_box: bool
    weighted: list[tuple[keras.Layer, keras.Layer | None]]


def build(text: str) -> Detector:
    """Makes the network that a .cfg text describes; all its weights are 0.

    Raises:
        DetectionError: the text is broken, or asks for what is not known here.
    """
    net, *sections = parse(text)
    image = keras.Input((net.count("height"), net.count("width"), net.count("channels", 3)))
    outputs: list[Tensor] = []
    found: list[tuple[Head, Tensor]] = []
    weighted: list[tuple[keras.Layer, keras.Layer | None]] = []
    for section in sections:
        _refuse_unknown(section)
        x = outputs[-1] if outputs else image
        try:
            match section.kind:
                case "convolutional" | "conv":
                    x = _convolve(section, x, weighted)
                case "maxpool" | "max":
                    x = _pool(section, x)
                case "route":
                    x = _route(section, outputs)
                case "shortcut":
                    others = [_earlier(section, outputs, place) for place in section.numbers("from")]
                    if any(other.shape != x.shape for other in others):
                        raise section.error(f"adds maps of different shapes, {x.shape[1:]} and another")
                    x = _activate(section, layers.Add()([x, *others]), "linear")
                case "upsample":
                    x = layers.UpSampling2D(section.count("stride", 2), interpolation="nearest")(x)
                case "dropout":
                    pass  # only while training
                case "yolo":
                    found.append((_head(section, x), x))
                case _:
                    raise section.error("is no layer that is known here")
        except (ValueError, TypeError) as error:  # Keras' words for shapes that don't fit
            raise section.error(str(error).splitlines()[0]) from error
        outputs.append(x)
    if not found:
        raise DetectionError("it has no [yolo] layer, so it detects nothing")
    heads, maps = zip(*found, strict=True)
    return Detector(keras.Model(image, list(maps)), list(heads), net.number("letter_box", 0) != 0, weighted)


def load_weights(detector: Detector, path: Path) -> None:
    """Gives the network the numbers of a .weights file, which must be as many as it has parameters.

    The file: version (three int32), images seen in training (int64, int32 before version 0.2), then float32, little-endian,
    layer by layer: biases, normalisation's scales, means and variances where there is one, filters.

    Raises:
        DetectionError: the file holds more or fewer numbers, or some that are none.
        OSError: it can't be read.
    """
    content = path.read_bytes()
    version = np.frombuffer(content[:8].ljust(8, b"\0"), "<i4")
    numbers = content[20 if version[0] * 10 + version[1] >= 2 else 16 :]
    needed = detector.network.count_params()
    if len(numbers) != 4 * needed:
        raise DetectionError(
            f"{path} holds {len(numbers) / 4:,.10g} numbers, and the network {needed:,}: "
            f"the file is {'cut short' if len(numbers) < 4 * needed else 'too long'}, or of another network"
        )
    values = np.frombuffer(numbers, "<f4")
    if not np.isfinite(values).all():
        raise DetectionError(f"{path} holds values that are no finite numbers: it is broken, or no .weights file")
    place = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal place
        taken = values[place : place + int(np.prod(shape))].reshape(shape)
        place += taken.size
        return taken

    for convolution, normalisation in detector.weighted:
        height, width, channels, filters = convolution.kernel.shape
        depthwise = isinstance(
            convolution, layers.DepthwiseConv2D
        )  # its kernel is (height, width, channels, filters of each)
        biases = take(channels * filters if depthwise else filters)
        if normalisation is not None:
            scales, means, variances = (take(len(biases)) for _ in range(3))
            normalisation.set_weights([scales, biases, means, variances])
        if depthwise:
            kernel = take(channels, filters, height, width).transpose(2, 3, 0, 1)
        else:
            kernel = take(filters, channels, height, width).transpose(2, 3, 1, 0)
        convolution.set_weights([kernel] if normalisation is not None else [kernel, biases])


def _refuse_unknown(section: Section) -> None:
    for name, harmless in UNKNOWN.items():
        value = section.options.get(name, harmless)
        if value != harmless:
            raise section.error(f"{name}={value} is not known here")


def _activate(section: Section, x: Tensor, default: str) -> Tensor:
    name = section.options.get("activation", default)
    if name == "linear":
        return x
    if name not in ACTIVATIONS:
        raise section.error(f"activation={name} is not known here; these are: linear, {', '.join(ACTIVATIONS)}")
    return layers.Activation(ACTIVATIONS[name])(x)


def _convolve(section: Section, x: Tensor, weighted: list[tuple[keras.Layer, keras.Layer | None]]) -> Tensor:
    """A convolution, normalised if asked for; Darknet pads all sides alike, also at stride 2, where Keras would not."""
    filters, size, stride = (section.count(name, 1) for name in ("filters", "size", "stride"))
    groups, normalised = section.count("groups", 1), section.number("batch_normalize", 0) != 0
    padding = size // 2 if section.number("pad", 0) else section.count("padding", 0, least=0)
    if padding:
        x = layers.ZeroPadding2D(padding)(x)
    options = {"strides": stride, "use_bias": not normalised}
    channels = x.shape[-1]
    if groups > 1 and groups == channels:  # much faster than as groups of one channel
        if filters % groups:
            raise section.error(f"filters={filters} is no multiple of groups={groups}")
        convolution = layers.DepthwiseConv2D(
            size, depth_multiplier=filters // groups, depthwise_initializer="zeros", **options
        )
    else:
        convolution = layers.Conv2D(filters, size, groups=groups, kernel_initializer="zeros", **options)
    x = convolution(x)
    normalisation = (
        layers.BatchNormalization(epsilon=1e-6) if normalised else None
    )  # Darknet's on a CPU; on a GPU it is 1e-5
    if normalisation is not None:
        x = normalisation(x)
    weighted.append((convolution, normalisation))
    return _activate(section, x, "logistic")


def _pool(section: Section, x: Tensor) -> Tensor:
    """The greatest of each window. Darknet pads by size - 1 in all, the smaller half of it before, and never counts it."""
    stride = section.count("stride", 1)
    size = section.count("size", stride)
    padding = section.count("padding", size - 1, least=0)
    before, sides = padding // 2, []
    for length in x.shape[1:3]:
        windows = (length + padding - size) // stride + 1
        sides.append((before, max((windows - 1) * stride + size - length - before, 0)))
    if any(map(any, sides)):
        x = ops.pad(x, ((0, 0), *sides, (0, 0)), constant_values=float(np.finfo(np.float32).min))
    return layers.MaxPooling2D(size, stride)(x)


def _route(section: Section, outputs: list[Tensor]) -> Tensor:
    """Channels of earlier layers side by side; of each, or of a single one, only one group where asked for."""
    groups, group = section.count("groups", 1), section.count("group_id", 0, least=0)
    parts = []
    for place in section.numbers("layers"):
        part = _earlier(section, outputs, place)
        channels = part.shape[-1]
        if channels % groups or group >= groups:
            raise section.error(f"group {group} of {groups} of {channels} channels: there is no such group")
        share = channels // groups
        parts.append(part[..., group * share : (group + 1) * share] if groups > 1 else part)
    return layers.Concatenate()(parts) if len(parts) > 1 else parts[0]


def _earlier(section: Section, outputs: list[Tensor], place: float) -> Tensor:
    """What an earlier layer gives: counted from the first, or back from this one where `place` is negative."""
    index = place + len(outputs) if place < 0 else place
    if index != int(index) or not 0 <= index < len(outputs):
        raise section.error(f"refers to layer {place:g}, and there are {len(outputs)} before it")
    return outputs[int(index)]


def _head(section: Section, x: Tensor) -> Head:
    anchors, mask, classes = section.numbers("anchors"), section.numbers("mask"), section.count("classes", 20)
    if len(anchors) % 2 or min(anchors) <= 0:
        raise section.error("anchors are widths and heights in turn, greater than 0")
    pairs = np.array(anchors).reshape(-1, 2)
    if not all(place == int(place) and 0 <= place < len(pairs) for place in mask):
        raise section.error(f"mask={section.options['mask']} chooses from {len(pairs)} anchors, numbered from 0")
    chosen = pairs[np.array(mask, int)]
    if x.shape[-1] != len(chosen) * (5 + classes):
        raise section.error(
            f"{len(chosen)} anchors and {classes} classes take {len(chosen) * (5 + classes)} channels, not {x.shape[-1]}"
        )
    return Head(chosen, classes, section.number("scale_x_y", 1))
