"""Sample images to send to the service, and the code that draws them.

    draw.py         draws digits with a pen of our own, and writes the files of this folder
    photograph.py   makes photos of a drawn digit: paper, uneven light, grain

`make samples` writes the files again.
"""
