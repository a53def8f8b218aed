"""Changes a recipe's usual hyperparameters for one run: batch size, learning rate, optimiser."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras

from training.recipes import Recipe

_RATES = ("initial_learning_rate", "warmup_target")  # of a schedule that can be scaled


class HyperparameterError(Exception):
    """A hyperparameter can't be changed in this recipe; the message gives the reason."""


def changed(recipe: Recipe, batch_size: int | None, learning_rate: float | None, optimiser: str | None) -> Recipe:
    """Returns the recipe with other hyperparameters. None leaves a value as it is.

    Args:
        recipe: the recipe.
        batch_size: images per update.
        learning_rate: the constant rate, or the highest rate of the recipe's schedule, which keeps its form.
        optimiser: Keras' name of an optimiser, with Keras' settings and a constant rate, in place of the recipe's optimiser
            and schedule.

    Raises:
        HyperparameterError: the recipe's schedule has no highest rate that could be changed.
    """
    build = recipe.optimiser
    if optimiser is not None:
        build = _constant(optimiser, learning_rate)
    elif learning_rate is not None:
        build = _scaled(recipe, learning_rate)
        build(100)  # raises here rather than in the run
    return replace(recipe, optimiser=build, batch_size=batch_size or recipe.batch_size)


def highest_learning_rate(optimiser: keras.Optimizer) -> float | None:
    """Returns the constant rate, or the highest rate of a cosine schedule; None for another schedule."""
    rate = optimiser.get_config()["learning_rate"]
    if not isinstance(rate, dict):
        return float(f"{float(rate):.6g}")  # Keras holds it in float32
    rates = [float(rate["config"][name]) for name in _RATES if rate["config"].get(name) is not None]
    return max(rates) if rate["class_name"] == "CosineDecay" else None


def _constant(name: str, learning_rate: float | None) -> Callable[[int], keras.Optimizer]:
    def optimiser(updates: int) -> keras.Optimizer:
        config = {} if learning_rate is None else {"learning_rate": learning_rate}
        return keras.optimizers.get({"class_name": name, "config": config})

    return optimiser


def _scaled(recipe: Recipe, learning_rate: float) -> Callable[[int], keras.Optimizer]:
    def optimiser(updates: int) -> keras.Optimizer:
        original = recipe.optimiser(updates)
        highest = highest_learning_rate(original)
        if highest is None:
            raise HyperparameterError(
                f"--learning-rate can't change the schedule of recipe {recipe.name}; add --optimiser, or edit the recipe"
            )
        config: dict[str, Any] = original.get_config()
        rate = config["learning_rate"]
        if isinstance(rate, dict):
            factor = learning_rate / highest
            scaled = {name: rate["config"][name] * factor for name in _RATES if rate["config"].get(name) is not None}
            config["learning_rate"] = rate | {"config": rate["config"] | scaled}
        else:
            config["learning_rate"] = learning_rate
        return type(original).from_config(config)

    return optimiser
