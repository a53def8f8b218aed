"""Draws arrays as matplotlib figures in one style.

`png` renders a figure to a file's content, dark on white; `svg` renders it to an element of a web page that inherits the
page's text colour. The palette is safe for red-green colour blindness, and colour is never the only cue. pyplot is not
used: it keeps global state and may open windows.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from training.evaluate import wilson_interval

INK, GRID = "#22262b", "#b9c0c7"
BLUE, ORANGE = "#3b82c4", "#d9722b"
WIDTH = 4.8  # inches: text stays legible when a phone shows the whole width
IMAGE = 0.9  # inches; width of one image in a grid

styled = mpl.rc_context(
    {
        "font.family": "DejaVu Sans",  # ships with matplotlib
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.5,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 4,
        "svg.fonttype": "none",  # text stays text
    }
)
"""Decorator that applies the style. matplotlib reads some settings when an artist is made and some when it is drawn."""


@styled
def png(figure: Figure) -> bytes:
    """Renders the figure as a PNG file, 160 pixels per inch."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=160)
    return content.getvalue()


@styled
def svg(figure: Figure, name: str) -> str:
    """Renders the figure as an `<svg>` element for a page, without background, in the page's font and text colour.

    Args:
        figure: the figure to render.
        name: unique within a page; element ids inside the picture derive from it.
    """
    content = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    drawn = content.getvalue()
    drawn = drawn[drawn.index("<svg") :]  # drops the XML prologue, which is not allowed inside a page
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn)
    drawn = re.sub(r'<g id="[^"]*">', "<g>", drawn)  # ids such as "axes_1" would repeat in every figure
    drawn = drawn.replace("xlink:href", "href").replace("'DejaVu Sans'", "inherit")
    return drawn.replace(INK, "currentColor").replace(GRID, f"var(--grid, {GRID})")


@styled
def curves(history: Mapping[str, Sequence[float]]) -> Figure:
    """Plots loss and accuracy by epoch.

    Args:
        history: Keras' values by name: loss, accuracy, and optionally val_loss, val_accuracy.
    """
    figure = new(WIDTH, 4.6)
    above, below = figure.subplots(2, sharex=True)
    for axes, measure in ((above, "loss"), (below, "accuracy")):
        for name, label, colour, line in ((measure, "training", BLUE, "-"), (f"val_{measure}", "validation", ORANGE, "--")):
            if name in history:
                values = np.asarray(history[name])
                shown = values if measure == "loss" else np.maximum(1 - values, 1e-5)
                axes.plot(range(1, len(values) + 1), shown, line, color=colour, label=label, marker="o", markersize=2.5)
        axes.set_yscale("log")
        axes.set_ylabel(measure)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    above.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    below.yaxis.set_major_formatter(FuncFormatter(lambda error, _: _percent(1 - error)))
    below.invert_yaxis()  # plots the error on a log scale: 99 % and 99.5 % are as far apart as 98 % and 99 %
    below.set_xlabel("epoch")
    below.set_xlim(0.5, len(history["loss"]) + 0.5)
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    above.legend()
    return figure


@styled
def confusion(counts: Sequence[Sequence[int]], title: str = "") -> Figure:
    """Draws a confusion matrix: true digit by row, predicted digit by column, errors in orange with intensity by count."""
    table = np.asarray(counts)
    errors = table - np.diag(np.diag(table))
    shade = np.sqrt(errors / max(errors.max(), 1)) * 0.75
    figure = new(WIDTH, 4.8 if title else 4.6)
    axes = figure.subplots()
    for true, read in np.ndindex(table.shape):
        colour, alpha = (BLUE, 0.25) if true == read else (ORANGE, shade[true, read])
        axes.fill_between([read - 0.5, read + 0.5], true - 0.5, true + 0.5, color=colour, alpha=alpha, linewidth=0)
        if table[true, read]:
            axes.text(read, true, f"{table[true, read]}", ha="center", va="center_baseline", fontsize=8)
    axes.set(xlabel="digit read", ylabel="true digit", title=title)
    axes.set_xticks(range(len(table)))
    axes.set_yticks(range(len(table)))
    axes.set_xlim(-0.5, len(table) - 0.5)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(False)
    axes.tick_params(length=0)
    return figure


@styled
def reliability(answers: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Plots accuracy against confidence, with 95 % intervals, above the number of images in each band.

    Args:
        answers: at most two results of `evaluate.reliability`, by name: image count, mean confidence and accuracy in equal
            bands of confidence from 0 to 1.
    """
    figure = new(WIDTH, 4.6)
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="perfectly calibrated")
    styles = ((ORANGE, "s", -0.006), (BLUE, "o", 0.006))  # offset sideways, so that neither hides the other
    for (name, (count, confidence, accuracy)), (colour, marker, offset) in zip(answers.items(), styles, strict=False):
        filled = count > 0
        x, share = confidence[filled] + offset, accuracy[filled]
        trials = zip(np.rint(share * count[filled]), count[filled], strict=True)
        low, high = np.transpose([wilson_interval(int(correct), int(images)) for correct, images in trials])
        spread = np.maximum([share - low, high - share], 0)
        above.errorbar(x, share, spread, color=colour, marker=marker, label=name, linestyle="", elinewidth=1, capsize=2)
        below.stairs(count, np.linspace(0, 1, len(count) + 1), color=colour, linewidth=1.2)
    above.set(ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    above.legend(loc="lower center", bbox_to_anchor=(0.45, 1), ncols=3, fontsize=8, columnspacing=1)
    below.set(xlabel="confidence", ylabel="images", yscale="log")
    below.set_ylim(bottom=0.7)
    below.yaxis.set_major_formatter(FuncFormatter(lambda images, _: f"{images:,.0f}"))
    return figure


@styled
def risk_coverage(coverages: np.ndarray, risks: np.ndarray, marks: Mapping[str, tuple[float, float]]) -> Figure:
    """Plots the error of the accepted images against their share, rejecting the least confident images first.

    Args:
        coverages: (N,) accepted shares, ascending to 1.
        risks: (N,) error rates of the accepted images.
        marks: certified thresholds by the target error they are certified for, such as "0.01": the accepted share and its
            error.
    """
    wrong = risks > 0  # a log scale has no 0
    bottom = 10 ** np.floor(np.log10(min([1e-3, *risks[wrong]])))
    start = min([0.9, *(coverage - 0.02 for coverage, _ in marks.values())])
    figure = new(WIDTH, 3.6)
    axes = figure.subplots()
    axes.plot(coverages[wrong], risks[wrong], color=BLUE)
    for target, (coverage, error) in marks.items():
        limit, found = float(target), max(error, bottom)
        axes.axhline(limit, color=INK, linewidth=0.8, linestyle=":")
        across = axes.get_yaxis_transform()  # x as a share of the width
        axes.text(0.02, limit, f"at most {_percent(limit)}", transform=across, va="bottom", fontsize=8)
        axes.plot([coverage, coverage], [found, limit], color=ORANGE, linewidth=1)
        axes.plot(coverage, found, "o", color=ORANGE, markersize=6)
    axes.set(xlabel="share accepted", ylabel="error of the accepted", yscale="log", xlim=(start, 1 + (1 - start) / 50))
    axes.set_ylim(bottom=bottom)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: _percent(error)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: _percent(share)))
    return figure


@styled
def robustness(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots the cost of each kind of damage: a line from the undamaged accuracy to the accuracy under damage.

    Args:
        rows: damage, amount and accuracy; the first row is undamaged.
    """
    undamaged, damaged = rows[0]["accuracy"], rows[1:]
    figure = new(WIDTH, 0.9 + 0.2 * len(damaged))
    axes = figure.subplots()
    positions = np.arange(len(damaged))
    accuracies = [row["accuracy"] for row in damaged]
    axes.hlines(positions, accuracies, undamaged, color=BLUE, alpha=0.6)
    axes.plot(accuracies, positions, "o", color=BLUE)
    axes.axvline(undamaged, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(positions, [f"{row['damage']} {row['amount']}".strip() for row in damaged])
    axes.set_ylim(len(damaged) - 0.4, -0.6)
    axes.set_xlabel("accuracy (dotted: undamaged)")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: _percent(share)))
    axes.grid(axis="y", visible=False)
    return figure


@styled
def image_grid(
    images: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str],
    columns: int,
) -> Figure:
    """Draws images in rows of `columns`, ink dark on light paper, each with a title above.

    Args:
        images: (height, width) each, of any size, 0 paper to 255 ink.
        titles: one per image; "" for an image without a title.
        columns: images per row.
    """
    rows = -(-len(images) // columns)
    lines = max((title.count("\n") + 1 for title in titles if title), default=0)
    figure = new(columns * IMAGE, rows * (IMAGE + 0.16 * lines))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, title in zip(grid, images, titles, strict=False):
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title, fontsize=8, pad=2)
    return figure


def new(width: float, height: float) -> Figure:
    """Returns an empty figure of this size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
