"""Annotated boxes that are of no use, and why: they are left out and counted."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

MALFORMED = "without four finite numbers as box"
FLAT = "without area"
OUTSIDE = "outside the image"
_REASONS = ("", MALFORMED, FLAT, OUTSIDE)


def box_faults(boxes: ArrayLike, width: ArrayLike, height: ArrayLike) -> NDArray[np.str_]:
    """For each box (N, 4) xywh what makes it useless, or nothing if it can be used.

    Args:
        boxes: in pixels; NaN where there is no box.
        width: of the image, or (N,) of the image of each box; infinite where it is not known.
        height: likewise.
    """
    width, height = np.asarray(width, np.float64), np.asarray(height, np.float64)
    x, y, w, h = np.asarray(boxes, np.float32).reshape(-1, 4).astype(np.float64).T  # as precise as they are stored
    with np.errstate(invalid="ignore"):
        outside = (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)
        flat = (w <= 0) | (h <= 0)
    malformed = ~np.isfinite(x + y + w + h)
    return np.array(_REASONS)[np.select([malformed, flat, outside], [1, 2, 3], 0)]


def count_faults(faults: Iterable[str]) -> dict[str, int]:
    """How many boxes have each fault, in a fixed order."""
    counts = Counter(str(fault) for fault in faults)
    return {reason: counts[reason] for reason in sorted(counts) if reason}


def as_box(value: object) -> tuple[float, float, float, float]:
    """Four numbers as found in a file; NaN if they are not four numbers."""
    if isinstance(value, list | tuple) and len(value) == 4 and all(isinstance(v, int | float) for v in value):
        x, y, w, h = value
        return float(x), float(y), float(w), float(h)
    return (np.nan,) * 4
