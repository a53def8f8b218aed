"""Loads recipes from a Python file outside of this package: `digits-train run my_recipes.py:NAME`."""

import hashlib
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import keras
import numpy as np
import onnx

from training.evaluate import predict_heads
from training.export import export
from training.exported import Exported
from training.recipes import RECIPES, Recipe
from training.verify import verify

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # names a file and a model
INPUT_SHAPE = (None, 28, 28, 1)


class RecipeError(Exception):
    """A recipe can't be loaded; the message gives the reason."""


def split_argument(text: str) -> tuple[Path, str] | None:
    """Splits a recipe argument that names a Python file, PATH.py or PATH.py:NAME, into path and name.

    Returns:
        The path, and the name or ""; None if the argument names no file.
    """
    path, _, name = text.rpartition(":")
    if text.endswith(".py"):
        return Path(text), ""
    return (Path(path), name) if path.endswith(".py") else None


def load_recipe(path: Path, name: str = "") -> Recipe:
    """Runs a Python file and returns one recipe that it defines.

    Args:
        path: see `load_recipes`.
        name: of the recipe; "" for the only one.

    Raises:
        RecipeError: see `load_recipes`; or the file has several recipes, and no name is given.
    """
    recipes = _recipes(path)
    if not name and len(recipes) > 1:
        raise RecipeError(f"{path} has several recipes; name one: {path}:NAME, with NAME one of {', '.join(recipes)}")
    return _chosen(path, name, recipes)[0]


def load_recipes(path: Path, name: str = "") -> list[Recipe]:
    """Runs a Python file and returns recipes that it defines. The file is code: run only files that you trust.

    Args:
        path: a file that defines `RECIPE`, a `Recipe`, or `RECIPES`, several recipes in a list, a tuple or a dictionary.
        name: of one recipe; "" for all.

    Raises:
        RecipeError: the file can't be read or run, defines no such recipe, or a recipe's name or network is unusable.
    """
    return _chosen(path, name, _recipes(path))


def _chosen(path: Path, name: str, recipes: dict[str, Recipe]) -> list[Recipe]:
    """Returns the recipe of a name, or all recipes if the name is "", and checks that they can be used."""
    if name and name not in recipes:
        raise RecipeError(f"{path} has no recipe named {name!r}; its recipes are: {', '.join(recipes)}")
    chosen = [recipes[name]] if name else list(recipes.values())
    for recipe in chosen:
        _require_usable(path, recipe)
    return chosen


def _recipes(path: Path) -> dict[str, Recipe]:
    """Runs the file and returns its recipes by name."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read the recipe file {path}: {error.strerror}") from error
    module = ModuleType(f"recipe_file_{re.sub('[^A-Za-z0-9]', '_', path.stem)}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses in the file look their module up
    try:
        exec(compile(content, path, "exec"), module.__dict__)  # noqa: S102, the operator's own file
    except (Exception, SystemExit) as error:
        place = _line_in(path, error)
        raise RecipeError(f"the recipe file {path} fails{place}: {type(error).__name__}: {error}") from error
    found = [module.RECIPE] if hasattr(module, "RECIPE") else getattr(module, "RECIPES", None)
    if isinstance(found, dict):
        found = list(found.values())
    if not found or not isinstance(found, list | tuple) or not all(isinstance(recipe, Recipe) for recipe in found):
        raise RecipeError(
            f"the recipe file {path} must define RECIPE, a training.recipes.Recipe, or RECIPES, a list or dictionary of them"
        )
    names = [recipe.name for recipe in found]
    if len({*names}) < len(names):
        raise RecipeError(f"the recipe file {path} gives several recipes one name; its names are: {', '.join(names)}")
    file = {"name": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    return {recipe.name: replace(recipe, file=file) for recipe in found}


def _line_in(path: Path, error: BaseException) -> str:
    """Returns " in line N" for the innermost line of the file that an error passed through; "" if there is none."""
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}" if error.lineno else ""
    line, step = None, error.__traceback__
    while step:
        if step.tb_frame.f_code.co_filename == str(path):
            line = step.tb_lineno
        step = step.tb_next
    return f" in line {line}" if line else ""


def _require_usable(path: Path, recipe: Recipe) -> None:
    """Builds the network and exports it: a network of the wrong form should not fail after hours of training."""
    if not NAME.fullmatch(recipe.name):
        raise RecipeError(f"{path}: the recipe's name is {recipe.name!r}, expected letters, digits, '.', '_' and '-'")
    if recipe.name in RECIPES:
        raise RecipeError(f"{path}: the recipe's name {recipe.name!r} is that of a bundled recipe; choose another")
    try:
        network = recipe.network()
        recipe.optimiser(100)
        distortions = recipe.augmentation(0) if recipe.augmentation else []
    except Exception as error:
        raise RecipeError(f"{path}: recipe {recipe.name} can't be built: {type(error).__name__}: {error}") from error
    if not isinstance(network, keras.Sequential):
        raise RecipeError(f"{path}: recipe {recipe.name} builds a {type(network).__name__}, expected a keras.Sequential")
    outputs, why = (11, "logits with that of `whole`") if recipe.mixture else (10, "logits; an eleventh needs a mixture")
    if (network.input_shape, network.output_shape) != (INPUT_SHAPE, (None, outputs)):
        raise RecipeError(
            f"{path}: the network of recipe {recipe.name} maps {network.input_shape} to {network.output_shape}, expected "
            f"{INPUT_SHAPE}, pixels of 0 to 255, to {(None, outputs)}, {why}"
        )
    if not all(isinstance(layer, keras.Layer) for layer in distortions):
        raise RecipeError(f"{path}: the augmentation of recipe {recipe.name} must return a list of Keras layers")
    if keras.backend.backend() == "tensorflow":  # no other backend exports, see `export.require_exportable`
        try:
            _require_faithful_export(network)
        except Exception as error:
            raise RecipeError(f"{path}: the network of recipe {recipe.name} can't be exported: {error}") from error


def _require_faithful_export(network: keras.Sequential) -> None:
    """Exports the untrained network, and compares the file with the network on a few images.

    Biases and the statistics of normalisations get values as after a training: their first ones hide a wrong export.

    Raises:
        Exception: it can't be converted, or the file answers otherwise. Keras and tf2onnx raise errors of many types.
    """
    random = np.random.default_rng(0)
    for weight in network.weights:
        if len(weight.shape) == 1:
            weight.assign(np.asarray(weight) * random.uniform(0.5, 1.5, weight.shape) + random.uniform(0, 0.3, weight.shape))
    images = random.integers(0, 256, (20, 28, 28), np.uint8)
    with TemporaryDirectory() as directory:
        file = Path(directory) / "model.onnx"
        onnx.save(export(network, 1.0, {}), file)
        verify(Exported(file), partial(predict_heads, network), 1.0, images, rounded=False)
