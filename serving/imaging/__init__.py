"""Imaging: a crop as a camera cut it comes in, the 28x28 image that the models read goes out.

    file -> headers -> decode -> paper -> bands -> printing -> components -> whole -> framing -> image, whole

- headers.py: what a PNG or JPEG would cost to decode; refuses what is too large, too costly or no picture.
- decode.py: pixels to grey levels, upright.
- paper.py: evens out the light; how far each pixel is darker than its paper.
- bands.py: takes a band of shadow with two hard edges for paper.
- printing.py: clears ruling lines, sides of boxes, and dark strips.
- components.py: chooses the connected components of the ink that are the digit.
- whole.py: doubts that they are one whole digit.
- ink.py: these five steps in their order, and a doubt about strokes that glare has faded.
- crop.py: `frame_crop`, the whole path.
- framing.py: scales and centres the ink as MNIST does; training uses this file too, so it needs NumPy alone.

README.md beside this file has the kinds of crops, with the shares that are read and rejected.
"""
