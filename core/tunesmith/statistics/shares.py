"""Intervals of shares."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(share: float, trials: int, confidence: float) -> tuple[float, float]:
    """Return the interval of a share of ``trials`` independent trials (Wilson 1927), which holds the share itself."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
