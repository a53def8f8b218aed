"""The model contract on the serving side: inputs, outputs and labels of every ONNX file; training/README.md describes it.

`training/export.py` states the same contract, because neither side imports the other. The end-to-end test compares the two.
"""

VERSION = "1"

IMAGE_BYTES = 28 * 28

# By name: the type in ONNX Runtime's words, and the shape, where None stands for any number of images.
INPUTS: dict[str, tuple[str, list[int | None]]] = {"images": ("tensor(uint8)", [None, 28, 28])}
OUTPUTS: dict[str, tuple[str, list[int | None]]] = {
    "logits": ("tensor(float)", [None, 10]),
    "probabilities": ("tensor(float)", [None, 10]),
}
LABELS = [str(digit) for digit in range(10)]
