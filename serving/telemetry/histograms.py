"""A histogram and a summary that take whole arrays, and the bucket edges for ink and centre of mass."""

import functools

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Histogram, Summary

INK = (*(0.02, 0.05, 0.08, 0.09, 0.1, 0.11, 0.12, 0.13, 0.14, 0.16, 0.18, 0.2), *(0.25, 0.3, 0.4, 0.6, 0.8))
"""Upper edges of the buckets of ink, as a share of the image. Up to 0.2, each holds about a tenth of MNIST's images."""

CENTRE = (6, 10, 12, 13, 13.4, 13.6, 13.8, 14, 14.2, 14.4, 14.6, 15, 16, 18, 22)
"""Upper edges of the buckets of a centre of mass, in pixels, for rows and columns.

MNIST's centres spread evenly from 13.5 to 14.5 and end there. No edge lies at 13.5 or 14.5: rounding would then move images
from one bucket to the next.
"""


# Up to this many values, observing them one by one takes less time than NumPy's calls do.
_FEW = 6


class BulkHistogram(Histogram):
    """A histogram that observes an array for little more than the cost of one value.

    `observe` takes a lock for each value, which a request of a thousand images would pay a thousand times.
    """

    def observe_all(self, values: NDArray[np.floating]) -> None:
        """Observes each of `values`, shape (n,)."""
        if len(values) <= _FEW:
            for value in values.tolist():
                self.observe(value)
            return
        self._sum.inc(float(values.sum(dtype=np.float64)))
        counts = np.bincount(self._edges.searchsorted(values), minlength=len(self._buckets))
        for index, count in enumerate(counts.tolist()):
            if count:
                self._buckets[index].inc(count)

    @functools.cached_property
    def _edges(self) -> NDArray[np.float64]:
        return np.array(self._upper_bounds)


class BulkSummary(Summary):
    """A summary that observes an array for the cost of one value."""

    def observe_all(self, values: NDArray[np.floating]) -> None:
        """Observes each of `values`, shape (n,)."""
        self._count.inc(len(values))
        self._sum.inc(float(values.sum(dtype=np.float64)))
