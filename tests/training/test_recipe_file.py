import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.__main__ import main

RECIPE = """
from keras import Input, Sequential, layers, optimizers
from training.recipes import Recipe

def network():
    return Sequential([Input((28, 28, 1)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(10)])

def recipe(name):
    return Recipe(name, "a test", network, lambda updates: optimizers.Adam(0.01), 50, 2, (0, 1))

"""


@pytest.mark.parametrize(
    ("text", "suffix", "complaint"),
    [
        (None, "", "cannot read the recipe file {file}: No such file or directory"),
        ("RECIPE = 1 +", "", "the recipe file {file} fails in line 1: SyntaxError"),
        ("import os\n\nos.nothing", "", "the recipe file {file} fails in line 3: AttributeError"),
        ("import sys\nsys.exit(5)", "", "the recipe file {file} fails in line 2: SystemExit: 5"),
        ("RECIPE = 1\0", "", "the recipe file {file} fails: SyntaxError: source code string cannot contain null bytes"),
        ("x = 1", "", "must define RECIPE, a training.recipes.Recipe, or RECIPES, a list or dictionary of them"),
        ("RECIPE = 'convnet'", "", "must define RECIPE"),
        (RECIPE + "RECIPES = []", "", "must define RECIPE"),
        (
            RECIPE + "RECIPES = [recipe('a'), recipe('b')]",
            "",
            "has several recipes; name one: {file}:NAME, with NAME one of a, b",
        ),
        (RECIPE + "RECIPES = [recipe('a'), recipe('b')]", ":c", "{file} has no recipe named 'c'; its recipes are: a, b"),
        (RECIPE + "RECIPES = [recipe('a'), recipe('a')]", ":a", "{file} gives several recipes one name"),
        (RECIPE + "RECIPE = recipe('../a')", "", "the recipe's name is '../a', expected letters, digits"),
        (RECIPE + "RECIPE = recipe('flagship')", "", "'flagship' is that of a bundled recipe; choose another"),
        (RECIPE + "network = None\nRECIPE = recipe('a')", "", "recipe a can't be built: TypeError"),
        (RECIPE.replace("Dense(10)", "Dense(9)") + "RECIPE = recipe('a')", "", "to (None, 9), expected (None, 28, 28, 1)"),
        (
            RECIPE.replace("return Seq", "return str(1) or Seq") + "RECIPE = recipe('a')",
            "",
            "builds a str, expected a keras",
        ),
    ],
)
def test_a_file_without_a_usable_recipe_is_refused_with_the_reason(
    text: str | None, suffix: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    assert main(["run", f"{file}{suffix}", "--models", str(tmp_path / "models")]) == 2
    assert complaint.format(file=file) in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


HEAD = "layers.Flatten(), layers.Dense(10)])"


@pytest.mark.parametrize(
    ("stack", "complaint"),
    [
        (
            "layers.Flatten(), layers.Dense(11)])",
            "to (None, 11), expected (None, 28, 28, 1), pixels of 0 to 255, to (None, 10)",
        ),
        ("layers.Flatten(), layers.Dense(10, 'softmax')])", "must end in a dense layer without an activation"),
        ("layers.Flatten(), layers.Dense(10), layers.ReLU()])", "must end in a dense layer without an activation"),
        (
            "layers.Flatten(), layers.Dense(5), layers.BatchNormalization(scale=False), layers.Dense(10)])",
            "can't be exported",
        ),
    ],
)
def test_a_network_that_can_not_be_exported_is_refused_before_training(
    stack: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(RECIPE.replace(HEAD, stack) + "RECIPE = recipe('a')")
    assert main(["run", str(file), "--models", str(tmp_path / "models")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "stack",
    [
        f"layers.Conv2D(4, 3, activation='relu'), layers.BatchNormalization(), layers.MaxPooling2D(), {HEAD}",
        "layers.Flatten(), layers.Dense(8, activation='tanh'), layers.BatchNormalization(), layers.Dense(10)])",
        f"layers.BatchNormalization(), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), {HEAD}",
        f"layers.Rescaling(2.0, offset=-1.0), layers.Conv2D(4, 3, padding='same'), {HEAD}",
        f"layers.Conv2D(4, 3), layers.Rescaling(0.1), layers.Activation('tanh'), {HEAD}",
        "layers.Flatten(), layers.Dense(10, use_bias=False)])",
        "layers.Flatten(), layers.Dense(10, use_bias=False), layers.BatchNormalization()])",
    ],
)
def test_networks_of_other_forms_than_the_bundled_ones_are_exported_right(stack: str, tmp_path: Path) -> None:
    from training.recipe_file import load_recipe

    file = tmp_path / "mine.py"
    file.write_text(RECIPE.replace(HEAD, stack) + "RECIPE = recipe('a')")
    assert load_recipe(file).name == "a", "loading compares the exported file with the network"


def test_a_recipe_of_a_file_is_chosen_by_its_name(tmp_path: Path) -> None:
    from training.recipe_file import load_recipe

    file = tmp_path / "mine.py"
    file.write_text(RECIPE + "RECIPES = {'any': recipe('one'), 'other': recipe('two')}")
    recipe = load_recipe(file, "two")
    assert recipe.name == "two"
    assert recipe.file == {"name": "mine.py", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    file.write_text(RECIPE + "RECIPES = [recipe('only')]")
    assert load_recipe(file).name == "only"


def test_list_shows_the_recipes_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(RECIPE + "RECIPES = [recipe('one'), recipe('a-name-of-more-than-fifteen')]")
    assert main(["list", str(file), "convnet"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:3] for row in rows] == [
        ["one", "7,850", "2"],
        ["a-name-of-more-than-fifteen", "7,850", "2"],
        ["convnet", "93,322", "5"],
    ]
    assert {row.index("a test") for row in rows[:2]} == {head.index("source")}, "a long name moves every column"
    assert main(["list", f"{file}:one"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["recipe", "one"]


def test_recipes_of_two_files_with_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(RECIPE + "RECIPE = recipe('one')")
    (tmp_path / "other.py").write_text(RECIPE + "RECIPES = [recipe('one'), recipe('two')]")
    mine, other = (str(tmp_path / name) for name in ("mine.py", "other.py"))
    assert main(["list", mine, other]) == 2
    assert "two files define a recipe named 'one'; rename one of them" in capsys.readouterr().err
    assert main(["list", mine, f"{other}:two", mine]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["recipe", "one", "two"]


def test_a_catalogue_runs_the_recipes_of_a_file(
    drawings: tuple[NDArray[np.uint8], NDArray[np.uint8]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = drawings
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    file = tmp_path / "mine.py"
    file.write_text(RECIPE + "RECIPES = [recipe('one'), recipe('two')]")
    models = tmp_path / "catalogue"
    command = ["catalogue", "--data", str(tmp_path / "own.npz"), "--seeds", "1", "--hold-out", "100"]
    assert main([*command, "--models", str(models), "--recipes", f"{file}:two"]) == 0
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert rows == [[" `two` ", " a test ", "  "]]
    assert [path.name for path in models.iterdir() if path.is_dir()] == ["two"]
    [version] = (models / "two").iterdir()
    assert '"name": "mine.py"' in (version / "run.json").read_text()
    assert "`two`" in (models / "catalogue.md").read_text()
