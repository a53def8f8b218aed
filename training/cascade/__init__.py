"""Two networks in one ONNX file: a fast one reads every image, a larger one those of which the fast one is not sure.

- `graph`: joins two files into one.
- `stages`: the same calculation in NumPy, which the file is verified against.
"""
