"""One function per network. Each maps float32 pixels (N, 28, 28, 1), 0 paper to 255 ink, to logits (N, 10).

Preprocessing, such as division by 255, is the network's first layer; `export` folds it into the next one. Parameter counts
are Keras' own, including the moving averages of batch normalisation, which are not trained.
"""

import keras
from keras import layers


def cnn8() -> keras.Sequential:
    """One convolution of eight filters, then ten units before the ten classes: 11,776 parameters. Seed notebook 000.

    The ten ReLU units are a bottleneck that can collapse: a unit that is negative for every image gets no gradient. The
    network then loses the digits that depended on this unit.
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
        layers.Rescaling(1 / 255),  # equals the notebook's min-max scaling: MNIST's pixels range from 0 to 255
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
    """`mlp128_raw` on pixels scaled to 0 to 1, the notebook's exercise: 118,282 parameters. Seed notebook 004."""
    return _sequential(layers.Rescaling(1 / 255), *_mlp128())


def mlp128_raw() -> keras.Sequential:
    """Two hidden layers of 128 with dropout, on pixels of 0 to 255: 118,282 parameters. Seed notebook 004."""
    return _sequential(*_mlp128())


def lenet5() -> keras.Sequential:
    """LeNet-5 as the notebook builds it, with tanh and max pooling, on pixels of 0 to 255: 44,426 parameters.

    Source: seed notebook 004, after LeCun et al. 1998, Gradient-based learning applied to document recognition, Proceedings
    of the IEEE 86, 2278-2324.
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
    """Five batch-normalised convolutions of 32 to 128 filters: 325,034 parameters, 16.4 million multiply-adds. Our own.

    Pooling comes before normalisation and ReLU, which quarters their cost. The outputs are unchanged wherever a filter's
    scale is positive.
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


def flagship_whole() -> keras.Sequential:
    """Five convolutions over 2x2 squares of pixels, and a hidden layer: 699,403 parameters. Our own.

    Eleven outputs: the logits of the digits, and that of `whole`. A square of pixels becomes four channels, and a stride of
    two takes the place of pooling.
    """
    return _sequential(
        layers.Rescaling(1 / 255),
        layers.Reshape((14, 2, 14, 2)),
        layers.Permute((1, 3, 2, 4)),
        layers.Reshape((14, 14, 4)),
        *_normalised_convolution(64, 3, "same"),
        layers.ZeroPadding2D(((0, 1), (0, 1))),
        *_normalised_convolution(96, 3, "valid", strides=(2, 2)),
        *_normalised_convolution(96, 3, "same"),
        *_normalised_convolution(128, 3, "valid"),
        *_normalised_convolution(128, 3, "valid"),
        *_two_heads(256),
    )


def flagship_small() -> keras.Sequential:
    """`convnet` with batch normalisation and dropout: 93,802 parameters, 2.8 million multiply-adds. Our own."""
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


def folded() -> keras.Sequential:
    """Three convolutions over rows of which four pixels become channels, and a hidden layer: 194,123 parameters. Our own.

    Eleven outputs: the logits of the digits, and that of `whole`. A stem with one channel, as other networks have it, costs
    ONNX Runtime's 8-bit kernels four times as much per multiply-add. Folding is a reshape, which costs nothing.
    """
    return _sequential(
        layers.Rescaling(1 / 255),
        layers.Reshape((28, 7, 4)),
        layers.ZeroPadding2D(((2, 2), (1, 1))),
        *_normalised_convolution(64, (8, 3), "valid", strides=(4, 1)),
        *_normalised_convolution(64, 3, "valid"),
        *_normalised_convolution(64, 3, "valid"),
        *_two_heads(192),
    )


def _two_heads(hidden: int) -> tuple[keras.Layer, ...]:
    """Returns a hidden layer and the last layer, whose outputs are the logits of the digits and that of `whole`."""
    return (
        layers.Flatten(),
        layers.Dropout(0.1),
        layers.Dense(hidden, use_bias=False),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.Dropout(0.15),
        layers.Dense(11),
    )


def _normalised_convolution(
    filters: int, size: int | tuple[int, int], padding: str, pool: bool = False, strides: tuple[int, int] = (1, 1)
) -> tuple[keras.Layer, ...]:
    """Returns a convolution, optional pooling, batch normalisation and ReLU. The normalisation makes a bias redundant.

    Keras' default momentum of 0.99 lets the moving averages lag a thousand updates behind; 0.9 settles in time.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167.
    """
    return (
        layers.Conv2D(filters, size, strides=strides, padding=padding, use_bias=False),
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
