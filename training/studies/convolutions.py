"""Studies of convolution, stride, padding and pooling, computed by Keras' own layers."""

import itertools

import keras
import numpy as np
from keras import layers
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from training import figures
from training.studies.images import one_of_each
from training.studies.workbench import Workbench

SIGNED = LinearSegmentedColormap.from_list("signed", ["#6b3108", figures.ORANGE, "white", figures.BLUE, "#12375c"])
"""Negative values orange, 0 white, positive values blue."""

# The filters of seed notebook 004.
FILTERS = {
    "vertical gradient": np.array([[0.2, -0.2, 0]] * 3),
    "box blur": np.full((3, 3), 1 / 9),
    "sharpen": np.array([[0.0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
    "vertical line": np.array([[-1.0, 2, -1]] * 3),
    "diagonal": np.array([[-1.0, -1, 2], [-1, 2, -1], [2, -1, -1]]),
}


def filters(bench: Workbench) -> str:
    """Applies five filters to the first example of each digit and to a plus sign, and shows the signed responses.

    The notebook shows the responses as uint8, in which -153 becomes 103 and 1,000 becomes 232. Here a response of 0 is
    white, and negative and positive responses have different colours.
    """
    inputs = {**{str(digit): image for digit, image in enumerate(one_of_each(bench.dataset.train))}, "plus": plus()}
    answers = {name: convolve(np.stack(list(inputs.values())), kernel) for name, kernel in FILTERS.items()}
    outside = {name: float(((found < 0) | (found > 255)).mean()) for name, found in answers.items()}
    bench.picture("filters", _filtered(inputs, answers))
    rows = [
        [name, shown, *answer.shape, *(round(float(value), 2) for value in (answer.min(), answer.mean(), answer.max()))]
        for name, found in answers.items()
        for shown, answer in zip(inputs, found, strict=True)
    ]
    bench.table("filters", ["filter", "input", "rows", "columns", "least", "mean", "greatest"], rows)
    ranges = ", ".join(f"{name} {found.min():.0f} to {found.max():.0f}" for name, found in answers.items())
    worst = max(outside, key=lambda name: outside[name])
    return (
        f"28x28 becomes {rows[0][2]}x{rows[0][3]}; responses: {ranges}; uint8 can't represent {outside[worst]:.0%} of the "
        f"responses of the filter {worst}"
    )


def stride_padding(bench: Workbench) -> str:
    """Measures the output sizes for strides 1 and 2 with padding "same" and "valid", and compares them with the formula.

    The notebook declares a 5x5 kernel but passes a 3x3 kernel to Keras; here Keras gets the kernel's true size.
    """
    kernels = {3: FILTERS["sharpen"], 5: np.full((5, 5), 1 / 25)}
    rows, panels = [], []
    for size, side in ((28, 3), (28, 5), (25, 3), (25, 5)):
        panels.append([(f"{size}x{size}", plus(size).astype(float))])
        for stride, padding in itertools.product((1, 2), ("same", "valid")):
            answer = convolve(plus(size)[None], kernels[side], stride, padding)[0]
            rows.append([size, side, stride, padding, answer.shape[0], output_size(size, side, stride, padding)])
            panels[-1].append((f"{side}x{side}, stride {stride},\n{padding}: {answer.shape[0]}x{answer.shape[1]}", answer))
    convolved = convolve(plus()[None], kernels[3])[0]
    pooled = pool(convolved[None])[0]
    chain = [plus().astype(float), convolved, pooled]
    names = ("", "\nconvolved 3x3", "\nand pooled 2x2")
    panels.append([(f"{len(image)}x{len(image)}{name}", image) for name, image in zip(names, chain, strict=True)])
    bench.picture("stride-padding", _to_scale(panels))
    bench.table("stride-padding", ["input", "kernel", "stride", "padding", "output", "formula"], rows)
    found = {(size, side, stride, padding): output for size, side, stride, padding, output, _ in rows}
    agree = sum(output == formula for *_, output, formula in rows)
    return (
        f"28x28 under 3x3: stride 1 same {found[28, 3, 1, 'same']}, valid {found[28, 3, 1, 'valid']}, "
        f"stride 2 same {found[28, 3, 2, 'same']}, valid {found[28, 3, 2, 'valid']}; with pooling "
        f"{' -> '.join(str(len(image)) for image in chain)}; 25x25 under 3x3, stride 2: {found[25, 3, 2, 'valid']}; "
        f"{agree} of {len(rows)} sizes agree with the formula"
    )


def max_pooling(bench: Workbench) -> str:
    """Applies 2x2 pooling repeatedly to the first example of each digit, and once to the output of a 3x3 filter."""
    digits = one_of_each(bench.dataset.train).astype(np.float32)
    steps = [digits]
    while steps[-1].shape[1] > 3:
        steps.append(pool(steps[-1]))
    edges = convolve(digits, FILTERS["vertical line"])
    titles = [f"{step.shape[1]}x{step.shape[2]}" for step in steps for _ in range(10)]
    bench.picture("max-pooling", figures.image_grid([image for step in steps for image in step], titles, columns=10))
    pairs = [*itertools.pairwise(steps), (edges, pool(edges))]
    rows = [
        [
            before.shape[1],
            after.shape[1],
            before.shape[1] // 2,
            round(float(before.mean()), 2),
            round(float(after.mean()), 2),
        ]
        for before, after in pairs
    ]
    bench.table("max-pooling", ["before", "after", "formula", "mean_before", "mean_after"], rows)
    odd = [before for before, *_ in rows if before % 2]
    return (
        f"{' -> '.join(str(step.shape[1]) for step in steps)}, after a 3x3 convolution {rows[-1][0]} -> {rows[-1][1]}; "
        f"of {odd[0]} rows and columns the last is dropped; the mean pixel rises, as only the darkest of four is kept: "
        f"{' -> '.join(f'{step.mean():.0f}' for step in steps)}"
    )


def plus(size: int = 28) -> np.ndarray:
    """Draws a plus sign with arms six pixels wide, (size, size) uint8, 0 paper, 255 ink.

    Source: seed notebook 004, in 28x28.
    """
    drawn, middle = np.zeros((size, size), np.uint8), size // 2
    drawn[4 : size - 4, middle - 3 : middle + 3] = 255
    drawn[middle - 3 : middle + 3, 4 : size - 4] = 255
    return drawn


def convolve(images: np.ndarray, kernel: np.ndarray, stride: int = 1, padding: str = "valid") -> np.ndarray:
    """Applies a Keras convolution without bias and activation to `images`, (N, rows, columns); returns N float32 maps.

    Keras expects the kernel as (rows, columns, input channels, filters): here one grey channel and one filter.
    """
    layer = layers.Conv2D(1, kernel.shape, stride, padding, use_bias=False)
    pixels = images[..., None].astype(np.float32)
    layer.build(pixels.shape)
    layer.set_weights([kernel[:, :, None, None]])
    answers: np.ndarray = keras.ops.convert_to_numpy(layer(pixels))[..., 0]
    return answers


def pool(images: np.ndarray) -> np.ndarray:
    """Applies Keras' 2x2 max pooling to `images`, (N, rows, columns): returns (N, rows // 2, columns // 2) float32."""
    pooled: np.ndarray = keras.ops.convert_to_numpy(layers.MaxPooling2D()(images[..., None].astype(np.float32)))[..., 0]
    return pooled


def output_size(size: int, kernel: int, stride: int, padding: str) -> int:
    """Returns the output rows of a convolution of `size` rows. Source: Dumoulin & Visin 2016, arXiv 1603.07285; "same" as in
    TensorFlow.
    """
    return (size - kernel) // stride + 1 if padding == "valid" else -(-size // stride)


@figures.styled
def _filtered(inputs: dict[str, np.ndarray], answers: dict[str, np.ndarray]) -> Figure:
    """Draws the inputs in the first row, and below them one row per filter: the filter and its response to each input."""
    figure = figures.new(0.9 * (len(inputs) + 1.5), 1.05 * (len(answers) + 1))
    grid = figure.subplots(len(answers) + 1, len(inputs) + 1, width_ratios=[1.5] + [1] * len(inputs))
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (name, image) in zip(grid[0, 1:], inputs.items(), strict=True):
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(name, fontsize=8, pad=2)
    for row, (name, found) in zip(grid[1:], answers.items(), strict=True):
        limit = float(np.abs(found).max())
        _draw_filter(row[0], name, limit)
        for axes, answer in zip(row[1:], found, strict=True):
            axes.imshow(answer, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
            axes.add_patch(_frame(*answer.shape))
    figure.supxlabel("responses: orange below 0, white 0, blue above 0", fontsize=8)
    return figure


def _draw_filter(axes: Axes, name: str, limit: float) -> None:
    kernel = FILTERS[name]
    strongest = float(np.abs(kernel).max())
    axes.imshow(kernel, cmap=SIGNED, vmin=-4 * strongest, vmax=4 * strongest)  # pale, so that the numbers stay legible
    for (row, column), weight in np.ndenumerate(kernel):
        axes.text(column, row, f"{weight:.2g}", ha="center", va="center_baseline", fontsize=6)
    axes.set_title(f"{name}\ndarkest: \u00b1{limit:,.0f}", fontsize=7, pad=2)


@figures.styled
def _to_scale(panels: list[list[tuple[str, np.ndarray]]]) -> Figure:
    """Draws rows of titled images at one common pixel size, each with its own colour range."""
    columns = max(len(row) for row in panels)
    side = max(len(image) for row in panels for _, image in row)
    figure = figures.new(1.5 * columns, 1.75 * len(panels))
    for axes in (grid := figure.subplots(len(panels), columns)).flat:
        axes.set_axis_off()
    for row, shown in zip(grid, panels, strict=True):
        for axes, (title, image) in zip(row, shown, strict=False):
            limit = np.abs(image).max()
            axes.imshow(image, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
            axes.add_patch(_frame(*image.shape))
            axes.set(xlim=(-1, side), ylim=(side, -1))
            axes.set_title(title, fontsize=7, pad=2, loc="left")
    figure.supxlabel("orange below 0, white 0, blue above 0", fontsize=8)
    return figure


def _frame(rows: int, columns: int) -> Rectangle:
    """Returns a rectangle around an image, whose edge white paper would not show."""
    return Rectangle((-0.5, -0.5), columns, rows, fill=False, edgecolor=figures.GRID, linewidth=0.8)
