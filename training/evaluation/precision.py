"""Average precision where scores may tie, in closed form."""

import numpy as np
from numpy.typing import NDArray


def summed_precision(scores: NDArray, right: NDArray) -> float:
    """Sum over the right answers of the precision at their score; over their number it is the AP.

    `scores`: (N,) of all answers, `right`: (R,) of those among them that are right. Equal scores count as
    one step, as in `sklearn.metrics.average_precision_score`: the result does not depend on any order.
    """
    return float((at_least(right, right) / at_least(scores, right)).sum()) if len(right) else 0.0


def at_least(scores: NDArray, limits: NDArray) -> NDArray[np.int64]:
    """(R,) how many of `scores` (N,) are no lower than each of `limits` (R,)."""
    return len(scores) - np.searchsorted(np.sort(scores), limits, side="left")
