"""Studies that train networks in two or more ways and compare the results."""

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from training import figures
from training.evaluate import predict_logits
from training.recipes import RECIPES
from training.studies.workbench import Trained, Workbench


def batch_size(bench: Workbench) -> str:
    """Compares accuracy and training time of `fcn512` at batches of 32, 128 and 10,000 images."""
    rows = []
    for name in ("fcn512-b32", "fcn512", "fcn512-b10000"):
        trained, size = bench.trained(name), RECIPES[name].batch_size
        updates = trained.epochs * -(-len(bench.dataset.train) // size)
        rows.append((size, trained.epochs, updates, round(trained.seconds, 1), trained.accuracy))
    bench.table("batch-size", ["batch_size", "epochs", "updates", "seconds", "accuracy"], rows)
    bench.picture("batch-size", _accuracy_and_time([(f"{size:,}", seconds, right) for size, _, _, seconds, right in rows]))
    found = (
        f"{size:,}: {accuracy:.4f} in {seconds:.0f} s, {updates:,} updates" for size, _, updates, seconds, accuracy in rows
    )
    return f"fcn512, {rows[0][1]} epochs, images per batch {'; '.join(found)}"


def optimiser(bench: Workbench) -> str:
    """Compares Adadelta at Keras' default rate with Adam, on the two convolutional networks of seed notebook 004."""
    runs = [bench.trained(name) for name in ("lenet5", "lenet5-adam", "cnn3264", "cnn3264-adam")]
    used = [type(RECIPES[run.recipe].optimiser(1)).__name__ for run in runs]
    bench.table(
        "optimiser",
        ["recipe", "optimiser", "epochs", "seconds", "test_accuracy"],
        [(run.recipe, name, run.epochs, round(run.seconds, 1), run.accuracy) for run, name in zip(runs, used, strict=True)],
    )
    bench.table(
        "optimiser-epochs",
        ["recipe", "epoch", "loss", "accuracy"],
        [
            (run.recipe, epoch, *figures_of_epoch)
            for run in runs
            for epoch, figures_of_epoch in enumerate(zip(run.history["loss"], run.history["accuracy"], strict=True), 1)
        ],
    )
    bench.picture("optimiser", _by_epoch(runs, used))
    pairs = [runs[:2], runs[2:]]
    found = (
        f"{slow.recipe} {slow.accuracy:.4f} with {used[0]} ({slow.seconds:.0f} s), {quick.accuracy:.4f} with {used[1]} "
        f"({quick.seconds:.0f} s)"
        for slow, quick in pairs
    )
    return f"test accuracy after {runs[0].epochs} epochs: {'; '.join(found)}"


def local_vs_global(bench: Workbench) -> str:
    """Compares a dense network, which sees the whole image at once, with a convolutional one, on shifted test images.

    The notebook claims that convolutions win because the patterns they learn are local and position-independent. A shifted
    digit should then cost them little accuracy. Each image is shifted by 0 to 4 pixels in eight directions.
    """
    test = bench.dataset.test
    rows, means = [], {}
    for name in ("dense512", "convnet"):
        network = bench.trained(name).network
        means[name] = [0.0] * 5
        for pixels in range(5):
            moves = sorted(set(itertools.product((-pixels, 0, pixels), repeat=2)) - ({(0, 0)} if pixels else set()))
            accuracies = []
            for down, right in moves:
                moved = shift(test.images, down, right)
                accuracies.append(float((predict_logits(network, moved).argmax(axis=1) == test.labels).mean()))
                rows.append([name, pixels, down, right, accuracies[-1], round(moved.sum() / test.images.sum(), 5)])
            means[name][pixels] = float(np.mean(accuracies))
            print(f"{name}, shifted by {pixels}: {means[name][pixels]:.4f}", flush=True)
    bench.table("local-vs-global", ["recipe", "pixels", "down", "right", "accuracy", "ink_kept"], rows)
    bench.picture("local-vs-global", _by_shift(means))
    found = (f"{name} {', '.join(f'{accuracy:.3f}' for accuracy in values)}" for name, values in means.items())
    return f"mean accuracy on images shifted by 0, 1, 2, 3, 4 pixels: {'; '.join(found)}"


def shift(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Shifts `images`, (N, 28, 28), by whole pixels; paper fills in, and ink that leaves the image is lost."""
    moved = np.zeros_like(images)
    rows, columns = images.shape[1:]
    moved[:, max(down, 0) : rows + min(down, 0), max(right, 0) : columns + min(right, 0)] = images[
        :, max(-down, 0) : rows + min(-down, 0), max(-right, 0) : columns + min(-right, 0)
    ]
    return moved


@figures.styled
def _accuracy_and_time(rows: Sequence[tuple[str, float, float]]) -> Figure:
    """Draws bars of test accuracy and training time for each batch size."""
    figure = figures.new(figures.WIDTH, 2.6)
    left, right = figure.subplots(1, 2, sharey=True)
    names, seconds, accuracies = zip(*rows, strict=True)
    for axes, values, label, text in (
        (left, accuracies, "test accuracy", "{:.4f}"),
        (right, seconds, "training time, seconds", "{:.0f}"),
    ):
        bars = axes.barh(names, values, color=figures.BLUE)
        axes.bar_label(bars, [text.format(value) for value in values], label_type="center", color="white")
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
    left.set_ylabel("images per batch")
    left.invert_yaxis()
    return figure


@figures.styled
def _by_epoch(runs: Sequence[Trained], used: Sequence[str]) -> Figure:
    """Plots training accuracy by epoch, with one colour and marker per optimiser and one line style per network."""
    figure = figures.new(figures.WIDTH, 4.0)
    axes = figure.subplots()
    styles = [(figures.ORANGE, "s-"), (figures.BLUE, "o-"), (figures.ORANGE, "s:"), (figures.BLUE, "o:")]
    for run, name, (colour, line) in zip(runs, used, styles, strict=True):
        label = f"{run.recipe.removesuffix('-adam')}, {name} (test {run.accuracy:.4f})"
        axes.plot(range(1, run.epochs + 1), run.history["accuracy"], line, color=colour, label=label)
    axes.set(xlabel="epoch", ylabel="training accuracy")
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    return figure


@figures.styled
def _by_shift(means: dict[str, list[float]]) -> Figure:
    """Plots mean accuracy by the distance that the images were shifted."""
    figure = figures.new(figures.WIDTH, 3.4)
    axes = figure.subplots()
    for (name, values), colour, line in zip(means.items(), (figures.ORANGE, figures.BLUE), ("s--", "o-"), strict=True):
        axes.plot(range(len(values)), values, line, color=colour, label=name)
    axes.set(xlabel="shift, pixels", ylabel="mean accuracy, eight directions", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    axes.legend()
    return figure
