"""Damage to images of digits, up to a level at which a person would still recognize most digits.

- `geometry`: shifts, turns, sizes and warps.
- `pens`: thicker, thinner, broken and hollow strokes.
- `light`: contrast, blur, noise and the camera.
- `clutter`: what covers a digit or lies beside it.
- `kind`: the type of a damage.

This code shares nothing with the distortions that networks are trained on: it judges them.
"""

from training.damage import clutter, geometry, light, pens
from training.damage.kind import Damage

# Name, amount and damage.
_MILD: list[tuple[str, str, Damage]] = [
    *(("shift", f"{pixels} px", geometry.shift(pixels)) for pixels in (1, 2, 3, 4)),
    *(("rotation", f"{degrees} degrees", geometry.rotation(degrees)) for degrees in (5, 10, 15, 20, 30)),
    *(("scale", f"{factor:.0%}", geometry.scale(factor)) for factor in (0.9, 0.8, 0.7, 1.1, 1.2)),
    *(("broader strokes", f"{pixels} px", pens.broader(pixels)) for pixels in (1, 2)),
    ("finer strokes", "1 px", pens.finer(1)),
    *(("blur", f"sigma {sigma} px", light.blur(sigma)) for sigma in (0.5, 1, 1.5, 2)),
    *(("noise", f"sigma {sigma} of 255", light.noise(sigma)) for sigma in (20, 40, 80)),
    *(("faint ink", f"{share:.0%}", light.faint(share)) for share in (0.5, 0.25)),
    ("inversion", "", light.inversion()),
    *(("occlusion", f"{pixels} x {pixels} px", clutter.occlusion(pixels)) for pixels in (4, 6, 8, 10)),
]
_SEVERE: list[tuple[str, str, Damage]] = [
    *(("haze", f"{veil:.0%}", light.haze(veil)) for veil in (0.5, 0.65)),
    *(("glare", f"{strength:.0%}", light.glare(strength)) for strength in (0.7, 0.9)),
    *(("inverted band", f"{pixels} px", light.inverted_band(pixels)) for pixels in (5, 9)),
    *(("stripes", f"grey {grey} of 255", clutter.stripes(grey)) for grey in (120, 220)),
    *(("zigzag line", f"grey {grey} of 255", clutter.zigzag(grey)) for grey in (120, 200)),
    *(("dashed lines", f"{lines}", clutter.dashes(lines)) for lines in (1, 2)),
    *(("blotches", f"{number}", clutter.blotches(number)) for number in (1, 3)),
    *(("specks", f"{share:.0%}", clutter.specks(share)) for share in (0.08, 0.16)),
    *(("neighbour", f"{pixels} px", clutter.neighbours(pixels)) for pixels in (4, 7)),
    *(("warp", f"{pixels} px", geometry.warp(pixels)) for pixels in (0.9, 1.3)),
    *(("thick pen", f"radius {radius} px", pens.thick(radius)) for radius in (1.25, 1.75)),
    *(("thin pen", f"radius {radius} px", pens.thin(radius)) for radius in (1, 1.4)),
    *(("broken strokes", f"{gaps} gaps", pens.broken(gaps)) for gaps in (3, 5)),
    *(("hollow strokes", f"{radius} px", pens.hollow(radius)) for radius in (1, 1.5)),
    *(("motion blur", f"{pixels} px", light.motion_blur(pixels)) for pixels in (4, 6)),
    *(("low resolution", f"{pixels} x {pixels} px", light.low_resolution(pixels)) for pixels in (10, 8)),
    *(("JPEG", f"quality {quality}", light.jpeg(quality)) for quality in (10, 3)),
]

# Each draws from a generator of its own, which its place in this list seeds: append new ones.
DAMAGES: list[tuple[str, str, Damage]] = [("none", "", lambda images, _: images), *_MILD, *_SEVERE]
SEVERE = tuple(dict.fromkeys(name for name, _, _ in _SEVERE))

__all__ = ["DAMAGES", "SEVERE", "Damage"]
