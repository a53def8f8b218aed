"""Pictures of numbers, one style for all; each function takes arrays and gives a matplotlib Figure.

`png` makes a file's content of it, dark on white; `svg` a piece of a web page, which takes its ink from the page's text.
Colours are told apart by those who see red and green alike, and never carry a meaning alone. Nothing here touches pyplot:
no state is shared, no window opens.
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
"""The style, as a decorator: matplotlib reads its settings when a thing is made, and some only when it is drawn."""


@styled
def png(figure: Figure) -> bytes:
    """The figure as a PNG file, 160 pixels an inch."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=160)
    return content.getvalue()


@styled
def svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element for a page: no background, the page's own font, and its text colour for ink.

    Args:
        figure: what to show.
        name: in a page, no two figures have the same: what refers to parts of the picture is made of it.
    """
    content = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    drawn = content.getvalue()
    drawn = drawn[drawn.index("<svg") :]  # without the XML prologue, which a page can't have in its middle
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn)
    drawn = re.sub(r'<g id="[^"]*">', "<g>", drawn)  # "axes_1" is in every figure
    drawn = drawn.replace("xlink:href", "href").replace("'DejaVu Sans'", "inherit")
    return drawn.replace(INK, "currentColor").replace(GRID, f"var(--grid, {GRID})")


@styled
def curves(history: Mapping[str, Sequence[float]]) -> Figure:
    """Loss and accuracy by epoch, as Keras names them: loss, accuracy, and where there are any val_loss, val_accuracy."""
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
    below.invert_yaxis()  # what is plotted is the error, on a log scale: 99 % and 99.5 % are as far apart as 98 % and 99 %
    below.set_xlabel("epoch")
    below.set_xlim(0.5, len(history["loss"]) + 0.5)
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    above.legend()
    return figure


@styled
def confusion(counts: Sequence[Sequence[int]], title: str = "") -> Figure:
    """Images by true digit (row) and digit read (column): the errors in orange, stronger where there are more."""
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
    """How often answers of a confidence are right, with 95 % intervals, above how many there are of each.

    Args:
        answers: by name, at most two; in equal bands of confidence from 0 to 1: count of images, their mean confidence,
            their accuracy, as `evaluate.reliability` gives them.
    """
    figure = new(WIDTH, 4.6)
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="as right as it is sure")
    looks = ((ORANGE, "s", -0.006), (BLUE, "o", 0.006))  # side by side, where one would hide the other
    for (name, (count, confidence, accuracy)), (colour, marker, aside) in zip(answers.items(), looks, strict=False):
        there = count > 0
        sure, share = confidence[there] + aside, accuracy[there]
        trials = zip(np.rint(share * count[there]), count[there], strict=True)
        low, high = np.transpose([wilson_interval(int(right), int(images)) for right, images in trials])
        spread = np.maximum([share - low, high - share], 0)
        above.errorbar(sure, share, spread, color=colour, marker=marker, label=name, linestyle="", elinewidth=1, capsize=2)
        below.stairs(count, np.linspace(0, 1, len(count) + 1), color=colour, linewidth=1.2)
    above.set(ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.02))
    above.legend(loc="lower center", bbox_to_anchor=(0.45, 1), ncols=3, fontsize=8, columnspacing=1)
    below.set(xlabel="confidence", ylabel="images", yscale="log")
    below.set_ylim(bottom=0.7)
    below.yaxis.set_major_formatter(FuncFormatter(lambda images, _: f"{images:,.0f}"))
    return figure


@styled
def risk_coverage(coverages: np.ndarray, risks: np.ndarray, marks: Mapping[str, tuple[float, float]]) -> Figure:
    """The error among the images accepted, against the share accepted, when the least sure are rejected first.

    Args:
        coverages: (N,) shares accepted, ascending to 1.
        risks: (N,) shares wrong among them.
        marks: certified thresholds, by the error they are certified for, "0.01": the share they accept, and its error.
    """
    wrong = risks > 0  # what has no error yet has no place on a log scale
    bottom = 10 ** np.floor(np.log10(min([1e-3, *risks[wrong]])))
    start = min([0.9, *(coverage - 0.02 for coverage, _ in marks.values())])
    figure = new(WIDTH, 3.6)
    axes = figure.subplots()
    axes.plot(coverages[wrong], risks[wrong], color=BLUE)
    for target, (coverage, error) in marks.items():
        limit, found = float(target), max(error, bottom)
        axes.axhline(limit, color=INK, linewidth=0.8, linestyle=":")
        place = axes.get_yaxis_transform()  # across: a share of the width
        axes.text(0.02, limit, f"at most {_percent(limit)}", transform=place, va="bottom", fontsize=8)
        axes.plot([coverage, coverage], [found, limit], color=ORANGE, linewidth=1)
        axes.plot(coverage, found, "o", color=ORANGE, markersize=6)
    axes.set(xlabel="share accepted", ylabel="error among the accepted", yscale="log", xlim=(start, 1 + (1 - start) / 50))
    axes.set_ylim(bottom=bottom)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: _percent(error)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: _percent(share)))
    return figure


@styled
def robustness(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What each kind of damage costs: a line from the accuracy on whole images, the first row, to that on damaged ones.

    Args:
        rows: damage, amount and accuracy of each.
    """
    whole, damaged = rows[0]["accuracy"], rows[1:]
    figure = new(WIDTH, 0.9 + 0.2 * len(damaged))
    axes = figure.subplots()
    places = np.arange(len(damaged))
    accuracies = [row["accuracy"] for row in damaged]
    axes.hlines(places, accuracies, whole, color=BLUE, alpha=0.6)
    axes.plot(accuracies, places, "o", color=BLUE)
    axes.axvline(whole, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(places, [f"{row['damage']} {row['amount']}".strip() for row in damaged])
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
    """Images in rows of `columns`, ink dark on light paper, each below its title.

    Args:
        images: (height, width) each, of any size, 0 paper to 255 ink.
        titles: one an image; "" for none.
        columns: images a row.
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
    """An empty figure, inches."""
    return Figure(figsize=(width, height), layout="constrained")


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
