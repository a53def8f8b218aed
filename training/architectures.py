"""One function per network. Each takes float32 images (N, 28, 28, 1), 0 paper to 1 ink, and gives logits (N, 10)."""

import keras
from keras import layers


def convnet() -> keras.Sequential:
    """Three plain convolutions and a hidden layer: 93,322 parameters.

    Source: seed notebook 002, which prints a test accuracy of 0.9896 (the example of Chollet, Deep Learning with Python).
    """
    return _sequential(
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
        layers.Dense(10),
    )


def convnet_bn() -> keras.Sequential:
    """`convnet` with batch normalisation and dropout: 93,802 parameters, and the same work to run.

    Source: ours; batch normalisation from Ioffe & Szegedy 2015, arXiv 1502.03167, whose scale and offset an inference
    engine folds into the convolutions.
    """
    return _sequential(
        *_normalised_convolution(32),
        layers.MaxPooling2D(),
        *_normalised_convolution(64),
        layers.MaxPooling2D(),
        *_normalised_convolution(64),
        layers.Flatten(),
        layers.Dropout(0.3),
        layers.Dense(64, activation="relu"),
        layers.Dropout(0.3),
        layers.Dense(10),
    )


def _normalised_convolution(filters: int) -> tuple[keras.Layer, ...]:
    """A 3x3 convolution, batch normalisation and relu; the normalisation's offset makes a bias superfluous.

    With Keras' own momentum, 0.99, the averages that the network is judged by take a thousand updates to settle.
    """
    return layers.Conv2D(filters, 3, use_bias=False), layers.BatchNormalization(momentum=0.9), layers.ReLU()


def _sequential(*stack: keras.Layer) -> keras.Sequential:
    return keras.Sequential([keras.Input((28, 28, 1)), *stack])
