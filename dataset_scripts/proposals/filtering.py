"""Which boxes of a segmentation are worth keeping: SoCo's rule "ratio3size0308"."""

import numpy as np
from numpy.typing import NDArray

from .inputs import FloatArray

MIN_SIDE_PX = 32
MAX_RATIO = 3
SIZE_RANGE = (0.3, 0.8)  # of the square root of the area, as a share of the image's


def keep_useful(boxes: NDArray[np.float64], width: int, height: int) -> FloatArray:
    """Boxes (N, 4) xywh that are large enough, not too long and of middling size, in their order.

    Where none passes, the test of size is dropped, then that of length; where there is still none, the whole image is
    the one box.
    """
    w, h = boxes[:, 2], boxes[:, 3]
    size = np.sqrt(w * h) / np.sqrt(width * height)
    large = (w >= MIN_SIDE_PX) & (h >= MIN_SIDE_PX)
    compact = (w <= MAX_RATIO * h) & (h <= MAX_RATIO * w)
    middling = (size >= SIZE_RANGE[0]) & (size <= SIZE_RANGE[1])
    for passed in (large & compact & middling, large & compact, large):
        if passed.any():
            return boxes[passed].astype(np.float32)
    return np.array([[0, 0, width, height]], np.float32)


def keep_once(boxes: FloatArray) -> FloatArray:
    """Each box where it stands first."""
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)]
