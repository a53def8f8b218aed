from dataclasses import replace

import numpy as np

from tests.training import names
from tests.training.test_dataset import numbered
from training.dataset import Dataset, Examples, hold_out


def test_every_recipe_and_network_is_tested() -> None:
    from training.recipes import RECIPES

    assert list(RECIPES) == list(names.RECIPES)
    recipe_of_network = {recipe.network.__name__: name for name, recipe in RECIPES.items()}
    assert recipe_of_network == names.RECIPE_OF_NETWORK


def test_recipes_have_the_parameters_that_their_sources_state() -> None:
    from training.recipes import RECIPES

    counts = {name: recipe.network().count_params() for name, recipe in RECIPES.items()}
    assert counts == {
        "cnn8": 11_776,
        "fcn512": 669_706,
        "fcn512-b32": 669_706,
        "fcn512-b10000": 669_706,
        "bncnn": 597_738,
        "dense512": 407_050,
        "convnet": 93_322,
        "cnn6k": 304_906,
        "mlp128-raw": 118_282,
        "mlp128": 118_282,
        "lenet5": 44_426,
        "lenet5-adam": 44_426,
        "cnn3264": 1_199_882,
        "cnn3264-adam": 1_199_882,
        "folded": 194_123,
        "flagship": 325_034,
        "flagship-whole": 699_403,
        "flagship-small": 93_802,
    }
    assert counts["flagship-small"] <= 100_000
    untrained = RECIPES["bncnn"].network().non_trainable_weights
    assert sum(weight.shape.num_elements() for weight in untrained) == 1_408


def test_a_recipe_trains_on_the_first_images_that_are_not_held_out() -> None:
    from training.recipes import RECIPES

    recipe = replace(RECIPES["cnn6k"], training_images=30, validation_images=20)
    kept, held = hold_out(numbered(100), 20, seed=1)
    train, validation = recipe.split(numbered(100), seed=1)
    np.testing.assert_array_equal(train.images, kept.images[:30])
    np.testing.assert_array_equal(validation.images, held.images)
    more = Dataset(Examples(np.zeros((6_100, 28, 28)), np.zeros(6_100)), kept, "none")
    assert len(RECIPES["cnn6k"].split(more, 0)[0]) == 6_000
