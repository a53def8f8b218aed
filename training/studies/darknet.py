"""Builds a Keras network from a detector's Darknet files: layers in a .cfg file, weights in a .weights file.

The semantics of each layer follow Darknet (Redmon, https://pjreddie.com/darknet, and Bochkovskiy's successor,
https://github.com/AlexeyAB/darknet). An unsupported layer or option that would change the result is refused, because an
almost correct network detects almost nothing.
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

Tensor = Any  # a symbolic Keras tensor, (N, rows, columns, channels); Keras ships no types

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky": lambda x: keras.activations.leaky_relu(x, negative_slope=0.1),
    "relu": keras.activations.relu,
    "mish": keras.activations.mish,
    "swish": keras.activations.silu,
    "logistic": keras.activations.sigmoid,
}

# Unsupported options that change a layer's result, each with the neutral value that is accepted.
UNSUPPORTED = {
    **dict.fromkeys(("antialiasing", "binary", "xnor", "flipped", "cbn", "coordconv", "sway", "rotate", "stretch"), "0"),
    **dict.fromkeys(("stretch_sway", "maxpool_depth", "new_coords", "reverse"), "0"),
    **dict.fromkeys(("dilation", "scale"), "1"),
    **dict.fromkeys(("stride_x", "stride_y", "share_index", "weights_type"), "none"),
}


@dataclass(frozen=True)
class Head:
    """Parameters to decode the output of a [yolo] layer.

    Attributes:
        anchors: (A, 2), width and height, in pixels of the network's input, of the boxes that the layer adjusts.
        classes: number of object classes.
        scale: range of a box's centre relative to its cell (`scale_x_y`); 1 keeps the centre inside the cell.
    """

    anchors: np.ndarray
    classes: int
    scale: float


@dataclass(frozen=True)
class Detector:
    """A network and the parameters to decode its output.

    Attributes:
        network: float32 colours (N, height, width, 3), 0 to 1, to one map per head, (N, rows, columns, A * (5 + classes)).
        heads: decoding parameters of each map.
        letter_box: True if a photo keeps its proportions between grey bars; otherwise it is stretched to the network's size.
        weighted: the layers with weights, in the order of the .weights file: convolutions, each with its normalisation or
            None.
    """

    network: keras.Model
    heads: list[Head]
    letter_box: bool
    weighted: list[tuple[keras.Layer, keras.Layer | None]]


def build(text: str) -> Detector:
    """Builds the network of a .cfg text, with all weights 0.

    Raises:
        DetectionError: the text is malformed, or uses an unsupported layer or option.
    """
    net, *sections = parse(text)
    image = keras.Input((net.count("height"), net.count("width"), net.count("channels", 3)))
    outputs: list[Tensor] = []
    found: list[tuple[Head, Tensor]] = []
    weighted: list[tuple[keras.Layer, keras.Layer | None]] = []
    for section in sections:
        _refuse_unsupported(section)
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
                    others = [_earlier(section, outputs, number) for number in section.numbers("from")]
                    if any(other.shape != x.shape for other in others):
                        raise section.error(f"adds maps of different shapes, {x.shape[1:]} and another")
                    x = _activate(section, layers.Add()([x, *others]), "linear")
                case "upsample":
                    x = layers.UpSampling2D(section.count("stride", 2), interpolation="nearest")(x)
                case "dropout":
                    pass  # active during training only
                case "yolo":
                    found.append((_head(section, x), x))
                case _:
                    raise section.error("unsupported kind of layer")
        except (ValueError, TypeError) as error:  # Keras' errors for shapes that don't fit
            raise section.error(str(error).splitlines()[0]) from error
        outputs.append(x)
    if not found:
        raise DetectionError("the .cfg file has no [yolo] layer, so the network can't detect anything")
    heads, maps = zip(*found, strict=True)
    return Detector(keras.Model(image, list(maps)), list(heads), net.number("letter_box", 0) != 0, weighted)


def load_weights(detector: Detector, path: Path) -> None:
    """Loads a .weights file, which must hold exactly as many numbers as the network has parameters.

    The file is little-endian. Its header holds the version (three int32) and the number of training images (int64, int32
    before version 0.2). Float32 values follow layer by layer: biases, the normalisation's scales, means and variances if
    there is one, filters.

    Raises:
        DetectionError: the file holds too many or too few numbers, or values that are not finite.
        OSError: the file can't be read.
    """
    content = path.read_bytes()
    version = np.frombuffer(content[:8].ljust(8, b"\0"), "<i4")
    numbers = content[20 if version[0] * 10 + version[1] >= 2 else 16 :]
    needed = detector.network.count_params()
    if len(numbers) != 4 * needed:
        raise DetectionError(
            f"{path} holds {len(numbers) / 4:,.10g} numbers, but the network has {needed:,} parameters: "
            f"the file is {'truncated' if len(numbers) < 4 * needed else 'too long'}, or belongs to another network"
        )
    values = np.frombuffer(numbers, "<f4")
    if not np.isfinite(values).all():
        raise DetectionError(f"{path} holds values that are not finite: it is damaged, or not a .weights file")
    offset = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal offset
        taken = values[offset : offset + int(np.prod(shape))].reshape(shape)
        offset += taken.size
        return taken

    for convolution, normalisation in detector.weighted:
        height, width, channels, filters = convolution.kernel.shape
        # The kernel of a depthwise convolution is (height, width, channels, filters per channel).
        depthwise = isinstance(convolution, layers.DepthwiseConv2D)
        biases = take(channels * filters if depthwise else filters)
        if normalisation is not None:
            scales, means, variances = (take(len(biases)) for _ in range(3))
            normalisation.set_weights([scales, biases, means, variances])
        if depthwise:
            kernel = take(channels, filters, height, width).transpose(2, 3, 0, 1)
        else:
            kernel = take(filters, channels, height, width).transpose(2, 3, 1, 0)
        convolution.set_weights([kernel] if normalisation is not None else [kernel, biases])


def _refuse_unsupported(section: Section) -> None:
    for name, neutral in UNSUPPORTED.items():
        value = section.options.get(name, neutral)
        if value != neutral:
            raise section.error(f"{name}={value} is not supported; only {name}={neutral} is")


def _activate(section: Section, x: Tensor, default: str) -> Tensor:
    name = section.options.get("activation", default)
    if name == "linear":
        return x
    if name not in ACTIVATIONS:
        raise section.error(f"activation={name} is not supported; supported are: linear, {', '.join(ACTIVATIONS)}")
    return layers.Activation(ACTIVATIONS[name])(x)


def _convolve(section: Section, x: Tensor, weighted: list[tuple[keras.Layer, keras.Layer | None]]) -> Tensor:
    """Adds a convolution with optional normalisation. Darknet pads all sides equally, also at stride 2, unlike Keras."""
    filters, size, stride = (section.count(name, 1) for name in ("filters", "size", "stride"))
    groups, normalised = section.count("groups", 1), section.number("batch_normalize", 0) != 0
    padding = size // 2 if section.number("pad", 0) else section.count("padding", 0, least=0)
    if padding:
        x = layers.ZeroPadding2D(padding)(x)
    options = {"strides": stride, "use_bias": not normalised}
    channels = x.shape[-1]
    if groups > 1 and groups == channels:  # DepthwiseConv2D is much faster than Conv2D with one channel per group
        if filters % groups:
            raise section.error(f"filters={filters} is not a multiple of groups={groups}")
        convolution = layers.DepthwiseConv2D(
            size, depth_multiplier=filters // groups, depthwise_initializer="zeros", **options
        )
    else:
        convolution = layers.Conv2D(filters, size, groups=groups, kernel_initializer="zeros", **options)
    x = convolution(x)
    # 1e-6 is Darknet's epsilon on a CPU; on a GPU it is 1e-5.
    normalisation = layers.BatchNormalization(epsilon=1e-6) if normalised else None
    if normalisation is not None:
        x = normalisation(x)
    weighted.append((convolution, normalisation))
    return _activate(section, x, "logistic")


def _pool(section: Section, x: Tensor) -> Tensor:
    """Adds max pooling. Darknet pads by size - 1 in total, the smaller half in front, and the padding never wins."""
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
    """Concatenates the channels of earlier layers, or selects one group of the channels of each layer."""
    groups, group = section.count("groups", 1), section.count("group_id", 0, least=0)
    parts = []
    for number in section.numbers("layers"):
        part = _earlier(section, outputs, number)
        channels = part.shape[-1]
        if channels % groups or group >= groups:
            raise section.error(f"group_id={group} with groups={groups} does not exist for {channels} channels")
        share = channels // groups
        parts.append(part[..., group * share : (group + 1) * share] if groups > 1 else part)
    return layers.Concatenate()(parts) if len(parts) > 1 else parts[0]


def _earlier(section: Section, outputs: list[Tensor], number: float) -> Tensor:
    """Returns the output of an earlier layer, counted from the first or, if `number` is negative, back from this one."""
    index = number + len(outputs) if number < 0 else number
    if index != int(index) or not 0 <= index < len(outputs):
        raise section.error(f"refers to layer {number:g}, but there are {len(outputs)} layers before it")
    return outputs[int(index)]


def _head(section: Section, x: Tensor) -> Head:
    anchors, mask, classes = section.numbers("anchors"), section.numbers("mask"), section.count("classes", 20)
    if len(anchors) % 2 or min(anchors) <= 0:
        raise section.error("anchors must be pairs of width and height, greater than 0")
    pairs = np.array(anchors).reshape(-1, 2)
    if not all(index == int(index) and 0 <= index < len(pairs) for index in mask):
        raise section.error(f"mask={section.options['mask']} must be indices, from 0, of the {len(pairs)} anchors")
    chosen = pairs[np.array(mask, int)]
    if x.shape[-1] != len(chosen) * (5 + classes):
        raise section.error(
            f"{len(chosen)} anchors and {classes} classes need {len(chosen) * (5 + classes)} channels, got {x.shape[-1]}"
        )
    return Head(chosen, classes, section.number("scale_x_y", 1))
