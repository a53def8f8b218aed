"""The model contract on the serving side: inputs, outputs and labels of every ONNX file; training/README.md describes it.

`training/export.py` states the same contract, because neither side imports the other. The end-to-end test compares the two.
"""

from typing import TypeAlias

Tensors: TypeAlias = dict[str, tuple[str, list[int | None]]]
"""By name: the type in ONNX Runtime's words, and the shape, where None stands for any number of images."""

IMAGE_BYTES = 28 * 28

INPUTS: Tensors = {"images": ("tensor(uint8)", [None, 28, 28])}
_DIGITS: Tensors = {"logits": ("tensor(float)", [None, 10]), "probabilities": ("tensor(float)", [None, 10])}
OUTPUTS: dict[str, Tensors] = {"1": _DIGITS, "2": {**_DIGITS, "whole": ("tensor(float)", [None, 1])}}
"""The outputs by the version of the contract that a file states. `whole` is the probability of one whole digit."""

LABELS = [str(digit) for digit in range(10)]
