"""Loads recipes from a Python file outside of this package: `digits-train run my_recipes.py:NAME`."""

import hashlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import keras

from training.recipes import RECIPES, Recipe

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # names a file and a model
INPUT_SHAPE = (None, 28, 28, 1)
OUTPUT_SHAPES = ((None, 10), (None, 11))  # the eleventh output is the second head, "one whole digit"


class RecipeError(Exception):
    """A recipe can't be loaded; the message gives the reason."""


def names_a_file(text: str) -> bool:
    """Tests if a recipe argument names a Python file: PATH.py or PATH.py:NAME."""
    return text.rpartition(":")[0].endswith(".py") or text.endswith(".py")


def load_recipe(text: str) -> Recipe:
    """Runs a Python file and returns the one recipe that `text` names.

    Args:
        text: see `load_recipes`; PATH.py names one recipe if the file defines only one.

    Raises:
        RecipeError: see `load_recipes`; or `text` names several recipes.
    """
    path, name = _path_and_name(text)
    recipes = _recipes(path)
    if not name and len(recipes) > 1:
        raise RecipeError(f"{path} has several recipes; name one: {path}:NAME, with NAME one of {', '.join(recipes)}")
    return _chosen(path, name, recipes)[0]


def load_recipes(text: str) -> list[Recipe]:
    """Runs a Python file and returns the recipes that `text` names. The file is code: run only files that you trust.

    Args:
        text: PATH.py for all recipes of a file, which defines `RECIPE`, a `Recipe`, or `RECIPES`, several recipes in a list,
            a tuple or a dictionary; or PATH.py:NAME for one of them.

    Raises:
        RecipeError: the file can't be read or run, defines no such recipe, or a recipe's name or network is unusable.
    """
    path, name = _path_and_name(text)
    return _chosen(path, name, _recipes(path))


def _path_and_name(text: str) -> tuple[Path, str]:
    """Splits PATH.py:NAME; the name is "" for PATH.py."""
    path, _, name = (text, "", "") if text.endswith(".py") else text.rpartition(":")
    return Path(path), name


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
    except Exception as error:
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


def _line_in(path: Path, error: Exception) -> str:
    """Returns " in line N" for the innermost line of the file that an error passed through; "" if there is none."""
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}"
    line, step = None, error.__traceback__
    while step:
        if step.tb_frame.f_code.co_filename == str(path):
            line = step.tb_lineno
        step = step.tb_next
    return f" in line {line}" if line else ""


def _require_usable(path: Path, recipe: Recipe) -> None:
    """Builds the network once: a wrong shape should not fail after hours of training."""
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
    if network.input_shape != INPUT_SHAPE or network.output_shape not in OUTPUT_SHAPES:
        raise RecipeError(
            f"{path}: the network of recipe {recipe.name} maps {network.input_shape} to {network.output_shape}, expected "
            f"{INPUT_SHAPE}, pixels of 0 to 255, to {OUTPUT_SHAPES[0]}, logits"
        )
    if not all(isinstance(layer, keras.Layer) for layer in distortions):
        raise RecipeError(f"{path}: the augmentation of recipe {recipe.name} must return a list of Keras layers")
