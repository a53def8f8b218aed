"""Sample images to send to the service, and the code that draws them.

    draw.py         draws digits as strokes of a pen, and writes the files of this folder.
    photograph.py   makes photos of a drawn digit: paper, uneven light, grain.

    0.png to 9.png  digits, 28x28 pixels, dark on light.
    photo.jpg       a photo of one digit.
    field/          photos of the digits of a postcode, from left to right.
    lexicons/       a lexicon with that postcode.

`make samples` writes the images again.
"""
