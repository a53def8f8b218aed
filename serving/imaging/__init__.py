"""Imaging: a photographed crop comes in, the 28x28 image that the models read goes out.

- decode.py: PNG or JPEG to grey levels; the only file that needs Pillow.
- ink.py: separates the ink from the paper.
- framing.py: scales and centres the ink as MNIST does; training uses this file too.
"""
