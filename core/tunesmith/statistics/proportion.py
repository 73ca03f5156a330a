"""The interval of a share: how many of n independent cases."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Return the ends of the score interval of a share (Wilson 1927), which holds for few cases and at 0 and 1 too.

    Args:
        share: What was found, in [0, 1].
        n: Number of independent cases, at least 1.
        confidence: Level of the interval, in (0, 1).

    Returns:
        Ends in [0, 1], on either side of the share.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if n < 1 or not 0 <= share <= 1 or not 0 < confidence < 1:
        raise ValueError(f"no interval of the share {share} of {n} cases at the level {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
