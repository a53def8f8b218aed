"""Images that show no digit, by kind, and the number of them that a version accepts.

- `kinds`: lists the kinds and draws their images.
- `printed`: letters, marks and signs of fonts. `drawn`: what a hand draws, with `pen`.
- `of_digits`: halves, pairs, turned and crossed-out digits. `pictures`: pieces of photos, noise and codes.
- `count`: counts the accepted images. `groups`: groups of kinds, and the mean and the worst of each.

No image is used in training. Training makes some of these kinds too, with other code, other fonts and other writers:
they are in the group `trained`. The kinds that training never makes are in the group `held_out`: they show what to expect
of what nobody thought of. Kinds of the group `digit_shaped` can't be told from digits in 28x28 pixels.
"""

from training.non_digits.count import count_accepted, table
from training.non_digits.groups import by_group
from training.non_digits.kinds import Kind, evaluation_kinds

__all__ = ["Kind", "by_group", "count_accepted", "evaluation_kinds", "table"]
