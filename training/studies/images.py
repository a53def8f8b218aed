"""Studies of MNIST's content: samples, and the number of images of each digit."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from training import figures
from training.dataset import Examples
from training.studies.workbench import Workbench


def samples(bench: Workbench) -> str:
    """Shows a grid of random digits, the first example of each digit, and one image as its 28x28 numbers.

    The notebooks draw a random index from an interval that includes the number of images, which is out of range; here every
    index is valid.
    """
    train = bench.dataset.train
    chosen = np.random.default_rng(bench.seed).choice(len(train), 16, replace=False)
    titles = [f"class {digit}" for digit in train.labels[chosen]]
    bench.picture("samples", figures.image_grid(train.images[chosen], titles, columns=4))
    bench.picture("samples-digits", figures.image_grid(one_of_each(train), [f"{digit}" for digit in range(10)], columns=5))
    index, image = chosen[0], train.images[chosen[0]]
    bench.picture("samples-numbers", _numbers(image))
    bench.table("samples", [f"column {column}" for column in range(28)], image.tolist())
    for row in image:
        print(" ".join(f"{pixel:3}" for pixel in row))
    return (
        f"training image {index:,}, of class {train.labels[index]}, is {image.shape[0]}x{image.shape[1]} numbers from "
        f"{image.min()} to {image.max()}, {np.mean(image == 0):.0%} of them 0"
    )


def balance(bench: Workbench) -> str:
    """Counts the training and test images of each class."""
    train, test = bench.dataset.train, bench.dataset.test
    counts = np.array([np.bincount(part.labels, minlength=10) for part in (train, test)])  # (2, 10)
    bench.picture("balance", _bars(counts))
    bench.table("balance", ["digit", "train", "test"], [[digit, *counts[:, digit]] for digit in range(10)])
    least, most = counts[0].argmin(), counts[0].argmax()
    height, width = train.images.shape[1:]
    return (
        f"{len(train):,} training and {len(test):,} test images, {height}x{width} pixels, {np.unique(train.labels).size} "
        f"classes; fewest training images are {least}s ({counts[0, least]:,}), most are {most}s ({counts[0, most]:,}), "
        f"{counts[0, most] / counts[0, least]:.2f} times as many"
    )


def one_of_each(examples: Examples) -> np.ndarray:
    """Returns the first image of each digit, (10, 28, 28) uint8."""
    return examples.images[[int(np.argmax(examples.labels == digit)) for digit in range(10)]]


@figures.styled
def _numbers(image: np.ndarray) -> Figure:
    """Draws an image with the value of each pixel."""
    figure = figures.new(8, 8)
    axes = figure.subplots()
    axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
    for (row, column), pixel in np.ndenumerate(image):
        colour = "white" if pixel > 127 else figures.INK if pixel else figures.GRID
        axes.text(column, row, f"{pixel}", ha="center", va="center_baseline", fontsize=6.5, color=colour)
    axes.set_axis_off()
    return figure


@figures.styled
def _bars(counts: np.ndarray) -> Figure:
    """Draws bars of the images of each digit, (2, 10): training above test."""
    figure = figures.new(figures.WIDTH, 4.6)
    for axes, part, row in zip(figure.subplots(2, sharex=True), ("training", "test"), counts, strict=True):
        bars = axes.bar(range(10), row, color=figures.BLUE)
        axes.bar_label(bars, [f"{count:,}" for count in row], label_type="center", color="white", fontsize=7)
        axes.axhline(row.mean(), color=figures.INK, linewidth=0.8, linestyle=":")
        axes.set_ylabel(f"{part} images")
        axes.set_xticks(range(10))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda images, _: f"{images:,.0f}"))
        axes.grid(axis="x", visible=False)
    axes.set_xlabel("digit (dotted: an equal share)")
    return figure
