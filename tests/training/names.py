"""Names of all recipes and networks, so that tests can be parametrized without loading Keras.

`test_recipes.py` checks that both lists are complete.
"""

RECIPES = (
    *("cnn8", "fcn512", "fcn512-b32", "fcn512-b10000", "bncnn", "dense512", "convnet", "cnn6k", "mlp128-raw", "mlp128"),
    *("lenet5", "lenet5-adam", "cnn3264", "cnn3264-adam", "folded", "flagship", "flagship-whole", "flagship-small"),
)

# One recipe per network; of two recipes for one network, the one whose optimiser learns from a few hundred images.
RECIPE_OF_NETWORK = {
    "cnn8": "cnn8",
    "fcn512": "fcn512-b10000",
    "bncnn": "bncnn",
    "dense512": "dense512",
    "convnet": "convnet",
    "cnn6k": "cnn6k",
    "mlp128_raw": "mlp128-raw",
    "mlp128": "mlp128",
    "lenet5": "lenet5-adam",
    "cnn3264": "cnn3264-adam",
    "folded": "folded",
    "flagship": "flagship",
    "flagship_whole": "flagship-whole",
    "flagship_small": "flagship-small",
}
