"""Studies of trained networks: their errors, their training curves and their parameters."""

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import layers
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from training import figures
from training.calibrate import softmax
from training.evaluate import evaluate
from training.fit import fit
from training.recipes import RECIPES
from training.studies.workbench import Workbench

QUICK = ("mlp128-raw", "mlp128", "lenet5")
"""The first networks of seed notebook 004, which take a few minutes; the whole catalogue takes an hour."""


def gallery(bench: Workbench) -> str:
    """Shows the first nine test images that `fcn512` classifies correctly, and the first nine that it gets wrong."""
    trained, test = bench.trained("fcn512"), bench.dataset.test
    probabilities = softmax(trained.answers, 1.0)
    digits = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(digits != test.labels)
    chosen = np.concatenate([np.flatnonzero(digits == test.labels)[:9], wrong[:9]])
    rows = [[index, digits[index], test.labels[index], f"{probabilities[index].max():.4f}"] for index in chosen]
    titles = [f"predicted {digit}\nclass {label}" for _, digit, label, _ in rows]
    bench.picture("gallery", figures.image_grid(test.images[chosen], titles, columns=9))
    bench.table("gallery", ["test_image", "predicted", "class", "confidence"], rows)
    median = f"{np.median(probabilities[wrong].max(axis=1)):.2f}" if len(wrong) else "no errors"
    return (
        f"fcn512, trained in {trained.seconds:.0f} s, classifies {len(digits) - len(wrong):,} of {len(digits):,} correctly; "
        f"{_commonest(evaluate(probabilities, test.labels).confusion)}; median confidence of the errors: {median}"
    )


def curves(bench: Workbench) -> str:
    """Plots loss and accuracy of `cnn6k` by epoch, on its training images and on 10,000 others.

    The notebook monitors the test images and selects the number of epochs by them. Here the monitored images are the last
    training images, which the recipe does not use.
    """
    recipe = RECIPES["cnn6k"]
    epochs, train = bench.epochs or recipe.epochs, bench.dataset.train
    checkpoint = bench.checkpoint("cnn6k-watched", epochs)
    print(f"cnn6k: {recipe.training_images:,} images, {epochs} epochs, seed {bench.seed}, validated on others", flush=True)
    used, monitored = train[: recipe.training_images], train[recipe.training_images :][-10_000:]
    fitted = fit(recipe, used, monitored, bench.seed, epochs, checkpoint)
    history = fitted.history
    names = ["loss", "val_loss", "accuracy", "val_accuracy"]
    bench.picture("curves", figures.curves(history))
    by_epoch = zip(*(history[name] for name in names), strict=True)
    rows = [[epoch, *(f"{value:.4f}" for value in values)] for epoch, values in enumerate(by_epoch, 1)]
    bench.table("curves", ["epoch", *names], rows)
    losses = history["val_loss"]
    first, best = first_rise(losses), int(np.argmin(losses)) + 1
    rise = f"first rises after epoch {first}" if first else "never rises"
    return (
        f"cnn6k, {len(losses)} epochs in {fitted.seconds:.0f} s: validation loss {rise} and is lowest, {min(losses):.4f}, "
        f"after epoch {best}; final accuracy is {history['accuracy'][-1]:.4f} in training, "
        f"{history['val_accuracy'][-1]:.4f} in validation"
    )


def first_rise(losses: list[float]) -> int | None:
    """Returns the first epoch, counted from 1, that is followed by a higher loss; None if the loss never rises."""
    return next((epoch for epoch in range(1, len(losses)) if losses[epoch] > losses[epoch - 1]), None)


def confusion(bench: Workbench) -> str:
    """Counts the confusions of each recipe, with the training time."""
    rows = []
    for name in bench.recipes or QUICK:
        trained = bench.trained(name)
        found = evaluate(softmax(trained.answers, 1.0), bench.dataset.test.labels)
        title = f"{name}: accuracy {found.accuracy:.4f}, {trained.epochs} epochs in {trained.seconds:.0f} s"
        bench.picture(f"confusion-{name}", figures.confusion(found.confusion, title))
        bench.table(f"confusion-{name}", ["true", *range(10)], [[true, *row] for true, row in enumerate(found.confusion)])
        rows.append([name, f"{found.accuracy:.4f}", trained.epochs, round(trained.seconds, 1), _commonest(found.confusion)])
    bench.table("confusion", ["recipe", "accuracy", "epochs", "seconds", "commonest_mistake"], rows)
    return "; ".join(f"{name} {accuracy} in {seconds:.0f} s ({mistake})" for name, accuracy, _, seconds, mistake in rows)


def _commonest(confusion: list[list[int]]) -> str:
    """Describes the most frequent error."""
    errors = np.array(confusion) * (1 - np.eye(10, dtype=int))
    true, read = np.unravel_index(errors.argmax(), errors.shape)
    return f"{true} read as {read} {errors.max()} times" if errors.any() else "no errors"


def parameters(bench: Workbench) -> str:
    """Computes every layer's parameters by formula beside Keras' count, and its multiply-adds per image, for all recipes.

    The notebook asks why LeNet-5 trains longer than the dense network although it has fewer parameters: its filters use each
    parameter at every position of the image.
    """
    networks = {name: recipe.network() for name, recipe in RECIPES.items()}
    rows = [
        [
            *(name, type(layer).__name__, "x".join(map(str, layer.output.shape[1:]))),
            *(*by_formula(layer), layer.count_params(), multiply_adds(layer)),
        ]
        for name, network in networks.items()
        for layer in network.layers
    ]
    bench.table("parameters", ["recipe", "layer", "output", "formula", "by_formula", "by_keras", "multiply_adds"], rows)
    distinct: dict[Callable[[], keras.Model], str] = {}
    for name, recipe in RECIPES.items():
        distinct.setdefault(recipe.network, name)
    bench.picture("parameters", _shares({name: networks[name] for name in distinct.values()}))
    agree = sum(row[4] == row[5] for row in rows)
    work = {name: sum(row[6] for row in rows if row[0] == name) for name in ("lenet5", "mlp128-raw")}
    largest = max(networks["lenet5"].layers, key=lambda layer: layer.count_params())
    lenet5, mlp128 = (networks[name].count_params() for name in ("lenet5", "mlp128-raw"))
    return (
        f"{agree} of {len(rows)} layers agree with the formula; lenet5 has {lenet5:,} parameters, {lenet5 / mlp128:.2f} of "
        f"mlp128-raw's {mlp128:,}; most are in its layer {_called(largest)}: {largest.count_params():,}, "
        f"{largest.count_params() / lenet5:.0%}; per image it needs {work['lenet5'] / work['mlp128-raw']:.1f} times the "
        f"multiply-adds"
    )


def by_formula(layer: keras.Layer) -> tuple[str, int]:
    """Returns the formula of a layer's parameters and their number. Layers of other kinds have no parameters.

    A filter has one weight per pixel and channel that it sees, and a unit has one weight per input; both have a bias if the
    layer has one. Batch normalisation has a scale, a shift, a mean and a variance per channel; the last two are not trained.
    """
    inputs = layer.input.shape[-1]
    if isinstance(layer, layers.Conv2D):
        rows, columns = layer.kernel_size
        seen, outputs = f"{rows}*{columns}*{inputs}", layer.filters
        weights = rows * columns * inputs
    elif isinstance(layer, layers.Dense):
        seen, weights, outputs = f"{inputs}", inputs, layer.units
    elif isinstance(layer, layers.BatchNormalization):
        return f"4 * {inputs}", 4 * inputs
    else:
        return "0", 0
    return (
        (f"({seen} + 1) * {outputs}", (weights + 1) * outputs)
        if layer.use_bias
        else (f"{seen} * {outputs}", weights * outputs)
    )


def multiply_adds(layer: keras.Layer) -> int:
    """Returns a layer's multiply-adds per image: one per weight, and in a convolution one per weight and output position."""
    if isinstance(layer, (layers.Conv2D, layers.Dense)):
        weights, positions = math.prod(layer.kernel.shape), math.prod(layer.output.shape[1:-1])
        return int(weights * positions)
    return 0


def _called(layer: keras.Layer) -> str:
    """Returns a layer's kind and width."""
    return f"{type(layer).__name__} {layer.output.shape[-1]}"


@figures.styled
def _shares(networks: dict[str, keras.Model]) -> Figure:
    """Draws one bar per network, divided into the parameters of its layers; the largest layer is named."""
    colours = {layers.Conv2D: figures.ORANGE, layers.Dense: figures.BLUE, layers.BatchNormalization: figures.GRID}
    figure = figures.new(1.5 * figures.WIDTH, 0.9 + 0.36 * len(networks))
    axes = figure.subplots()
    for position, network in enumerate(networks.values()):
        total, begin = network.count_params(), 0.0
        largest = max(network.layers, key=lambda layer: layer.count_params())
        for layer in network.layers:
            share = layer.count_params() / total
            axes.barh(position, share, left=begin, color=colours.get(type(layer)), edgecolor="white", linewidth=0.8)
            if layer is largest:
                text = f"{_called(layer)}: {layer.count_params():,}"
                axes.text(begin + share / 2, position, text, ha="center", va="center_baseline", fontsize=7, color="white")
            begin += share
    axes.set_yticks(range(len(networks)), [f"{name}  {network.count_params():,}" for name, network in networks.items()])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the parameters, layer after layer")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(visible=False)
    names = {"convolution": layers.Conv2D, "dense": layers.Dense, "normalisation": layers.BatchNormalization}
    handles = [Patch(color=colours[kind], label=name) for name, kind in names.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure
