"""The model contract, as the serving half knows it: what every ONNX file takes and gives. README.md has it in words.

`training/export.py` is the other side. Neither half imports the other for it, so both state it, and the end-to-end test
holds them together.
"""

VERSION = "1"

IMAGE_SHAPE = (28, 28)
IMAGE_BYTES = 28 * 28

# By name: ONNX Runtime's name of the type, and the shape; None stands for any number of images.
INPUTS: dict[str, tuple[str, list[int | None]]] = {"images": ("tensor(uint8)", [None, 28, 28])}
OUTPUTS: dict[str, tuple[str, list[int | None]]] = {
    "logits": ("tensor(float)", [None, 10]),
    "probabilities": ("tensor(float)", [None, 10]),
}
LABELS = [str(digit) for digit in range(10)]
