"""The type of a damage."""

from collections.abc import Callable

import numpy as np

# Maps images (N, 28, 28) float32, 0 paper to 255 ink, and a random generator to damaged images; the result may exceed the
# range of grey levels.
Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]
