import pytest


def test_a_changed_learning_rate_keeps_the_form_of_the_schedule() -> None:
    from training.hyperparameters import changed, highest_learning_rate
    from training.recipes import RECIPES

    original = RECIPES["flagship"].optimiser(1000)
    recipe = changed(RECIPES["flagship"], 32, 0.01, None)
    optimiser = recipe.optimiser(1000)
    assert (recipe.batch_size, highest_learning_rate(original), highest_learning_rate(optimiser)) == (32, 0.002, 0.01)
    assert type(optimiser) is type(original)
    assert optimiser.use_ema
    assert optimiser.weight_decay == original.weight_decay
    for step in (0, 50, 100, 600, 999):
        assert float(optimiser.get_config()["learning_rate"]["config"]["decay_steps"]) == 900
        assert float(optimiser._learning_rate(step)) == pytest.approx(5 * float(original._learning_rate(step)), abs=1e-9)


def test_a_constant_learning_rate_and_another_optimiser_replace_the_recipes_own() -> None:
    from training.hyperparameters import changed, highest_learning_rate
    from training.recipes import RECIPES

    plain = changed(RECIPES["convnet"], None, 0.02, None)
    assert (type(plain.optimiser(9)).__name__, highest_learning_rate(plain.optimiser(9))) == ("RMSprop", 0.02)
    assert plain.batch_size == RECIPES["convnet"].batch_size
    other = changed(RECIPES["flagship"], None, None, "sgd").optimiser(9)
    assert (type(other).__name__, highest_learning_rate(other), other.use_ema) == ("SGD", 0.01, False)
    assert highest_learning_rate(changed(RECIPES["flagship"], None, 0.3, "nadam").optimiser(9)) == 0.3


def test_a_schedule_of_another_form_is_not_changed_by_guessing() -> None:
    import keras

    from training.hyperparameters import HyperparameterError, changed, highest_learning_rate
    from training.recipes import RECIPES, Recipe

    def stepwise(updates: int) -> keras.Optimizer:
        return keras.optimizers.SGD(keras.optimizers.schedules.PiecewiseConstantDecay([updates // 2], [0.1, 0.01]))

    recipe = Recipe("steps", "a test", RECIPES["convnet"].network, stepwise, 50, 1, (0, 1))
    assert highest_learning_rate(recipe.optimiser(100)) is None
    with pytest.raises(HyperparameterError, match="--learning-rate can't change the schedule of recipe steps; add --opt"):
        changed(recipe, None, 0.1, None)


@pytest.mark.parametrize(
    ("flag", "value", "complaint"),
    [
        ("--learning-rate", "0", "must be a number above 0, not 0"),
        ("--learning-rate", "nan", "must be a number above 0, not nan"),
        ("--batch-size", "0", "must be a whole number from 1"),
        ("--optimiser", "magic", "invalid choice: 'magic'"),
    ],
)
def test_values_that_cannot_train_are_refused(
    flag: str, value: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(["run", "convnet", flag, value])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err
