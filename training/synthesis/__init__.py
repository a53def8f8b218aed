"""Synthesis: images that MNIST lacks, drawn for training.

    strokes -> glyphs   digits of regional styles
            -> letters  letters of fonts and of hands
    glyphs, letters, other_pens, rubbish -> bank -> mixture <- damage

- strokes.py: curves, the variations of a hand, and the pen that draws them.
- glyphs.py: digits drawn from stroke models, in styles that MNIST hardly has.
- other_pens.py: digits as other pens and scanners show them.
- letters.py: letters drawn from fonts and from stroke models.
- rubbish.py: images that show no whole digit.
- damage.py: damage by paper, light, scanner and neighbours.
- mixture.py: the images of one epoch, with their targets.
"""
