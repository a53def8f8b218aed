"""One function per network. Each takes pixels, float32 (N, 28, 28, 1), 0 paper to 255 ink, and gives logits (N, 10).

What a network does to its pixels first, dividing by 255 or nothing, is its own first layer; `export` folds it away.
Parameter counts are those of Keras' own summary, untrained averages of batch normalisation included.
"""

import keras
from keras import layers


def cnn8() -> keras.Sequential:
    """One convolution of eight filters, then ten units before the ten classes: 11,776 parameters. Seed notebook 000.

    The ten relu units in the middle are a bottleneck that can collapse: a unit that is negative for every image learns
    nothing any more, and the digits that it stood for are lost.
    """
    return _sequential(
        layers.Rescaling(1 / 255),
        layers.Conv2D(8, 4, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(10, activation="relu"),
        layers.Dense(10),
    )


def fcn512() -> keras.Sequential:
    """Two hidden layers of 512 with dropout: 669,706 parameters. Seed notebook 001."""
    return _sequential(
        layers.Rescaling(1 / 255),
        layers.Flatten(),
        layers.Dense(512, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(512, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(10),
    )


def bncnn() -> keras.Sequential:
    """Four convolutions and a hidden layer, all batch-normalised: 597,738 parameters. Seed notebook 001."""
    return _sequential(
        layers.Rescaling(1 / 255),
        *(layers.Conv2D(32, 3), layers.BatchNormalization(), layers.ReLU()),
        *(layers.Conv2D(32, 3), layers.BatchNormalization(), layers.ReLU()),
        layers.MaxPooling2D(),
        *(layers.Conv2D(64, 3), layers.BatchNormalization(), layers.ReLU()),
        *(layers.Conv2D(64, 3), layers.BatchNormalization(), layers.ReLU()),
        layers.MaxPooling2D(),
        layers.Flatten(),
        *(layers.Dense(512), layers.BatchNormalization(), layers.ReLU()),
        layers.Dropout(0.2),
        layers.Dense(10),
    )


def dense512() -> keras.Sequential:
    """One hidden layer of 512: 407,050 parameters. Seed notebook 002, which prints a test accuracy of 0.9817."""
    return _sequential(layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(512, activation="relu"), layers.Dense(10))


def convnet() -> keras.Sequential:
    """Three plain convolutions and a hidden layer: 93,322 parameters.

    Source: seed notebook 002, which prints a test accuracy of 0.9896 (the example of Chollet, Deep Learning with Python).
    """
    return _sequential(
        layers.Rescaling(1 / 255),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
        layers.Dense(10),
    )


def cnn6k() -> keras.Sequential:
    """Two convolutions, the second of 2x2, and a hidden layer with dropout: 304,906 parameters. Seed notebook 003."""
    return _sequential(
        layers.Rescaling(1 / 255),  # the notebook's min-max scaling: MNIST's least pixel is 0 and its greatest 255
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 2, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dropout(0.4),
        layers.Dense(10),
    )


def mlp128() -> keras.Sequential:
    """`mlp128_raw` on pixels of 0 to 1, as the notebook's exercise asks: 118,282 parameters. Seed notebook 004."""
    return _sequential(layers.Rescaling(1 / 255), *_mlp128())


def mlp128_raw() -> keras.Sequential:
    """Two hidden layers of 128 with dropout, on pixels of 0 to 255: 118,282 parameters. Seed notebook 004."""
    return _sequential(*_mlp128())


def lenet5() -> keras.Sequential:
    """The notebook's LeNet-5, with tanh and max pooling, on pixels of 0 to 255: 44,426 parameters. Seed notebook 004.

    After LeCun et al. 1998, Gradient-based learning applied to document recognition, Proceedings of the IEEE 86, 2278-2324.
    """
    return _sequential(
        layers.Conv2D(6, 5, activation="tanh"),
        layers.MaxPooling2D(),
        layers.Conv2D(16, 5, activation="tanh"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(120, activation="tanh"),
        layers.Dense(84, activation="tanh"),
        layers.Dense(10),
    )


def cnn3264() -> keras.Sequential:
    """Two convolutions, one pooling and a hidden layer, with dropout, on pixels of 0 to 255: 1,199,882 parameters.

    Source: seed notebook 004 (the network of Keras' first MNIST example).
    """
    return _sequential(
        layers.Conv2D(32, 3, activation="relu"),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Dropout(0.25),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dropout(0.5),
        layers.Dense(10),
    )


def flagship() -> keras.Sequential:
    """Five batch-normalised convolutions, 32 to 128 filters wide: 325,034 parameters, 16.4 million multiply-adds. Ours.

    Pooling comes before normalisation and relu, which are then a quarter of the work, and give the same answers wherever a
    filter's scale is positive.
    """
    return _sequential(
        layers.Rescaling(1 / 255),
        *_normalised_convolution(32, 5, "valid", pool=True),
        *_normalised_convolution(64, 3, "same"),
        *_normalised_convolution(64, 3, "same", pool=True),
        *_normalised_convolution(128, 3, "same"),
        *_normalised_convolution(128, 3, "same"),
        layers.Flatten(),
        layers.Dropout(0.4),
        layers.Dense(10),
    )


def flagship_small() -> keras.Sequential:
    """`convnet` with batch normalisation and dropout: 93,802 parameters, 2.8 million multiply-adds. Ours."""
    return _sequential(
        layers.Rescaling(1 / 255),
        *_normalised_convolution(32, 3, "valid", pool=True),
        *_normalised_convolution(64, 3, "valid", pool=True),
        *_normalised_convolution(64, 3, "valid"),
        layers.Flatten(),
        layers.Dropout(0.2),
        layers.Dense(64, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(10),
    )


def _normalised_convolution(filters: int, size: int, padding: str, pool: bool = False) -> tuple[keras.Layer, ...]:
    """A convolution, pooling if asked for, batch normalisation and relu; the normalisation makes a bias superfluous.

    Source of the normalisation: Ioffe & Szegedy 2015, arXiv 1502.03167. With Keras' own momentum, 0.99, the averages that
    the network is judged by take a thousand updates to settle.
    """
    return (
        layers.Conv2D(filters, size, padding=padding, use_bias=False),
        *([layers.MaxPooling2D()] if pool else []),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
    )


def _mlp128() -> tuple[keras.Layer, ...]:
    return (
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(128, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(10),
    )


def _sequential(*stack: keras.Layer) -> keras.Sequential:
    return keras.Sequential([keras.Input((28, 28, 1)), *stack])
