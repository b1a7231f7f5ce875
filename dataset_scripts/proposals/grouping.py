"""Hierarchical grouping, the heart of selective search: merge the two most alike neighbours until none are left.

Every region that exists on the way is a result, so the boxes nest. Two regions are the more alike the more their
histograms overlap, the smaller they are, and the better they fill their common box (Uijlings et al., 2013):

    overlap + (1 - (size + size') / area) + (1 - (common box - size - size') / area) = overlap + 2 - common box / area
"""

import numpy as np
from numpy.typing import NDArray

from .segments import Array


def group_regions(sizes: Array, boxes: Array, histograms: Array, pairs: NDArray[np.int64], area: float) -> Array:
    """(M, 4) boxes of all regions: first the segments, then the merged regions in the order of merging.

    Of several equally alike pairs, the first in `pairs` goes first; a merged region's pairs take the places of those
    of its parts.

    Args:
        sizes: (N,) pixels of every segment.
        boxes: (N, 4) xyxy.
        histograms: (N, B), shares of the segment's pixels.
        pairs: (E, 2) neighbours.
        area: Pixels of the image.
    """
    count, room = len(sizes), 2 * len(sizes) - 1
    size, corner, histogram = np.zeros(room), np.zeros((room, 4)), np.zeros((room, histograms.shape[1]))
    size[:count], histogram[:count] = sizes, histograms
    corner[:count] = boxes * (1, 1, -1, -1)  # so that the common box is one minimum

    def likeness(one: NDArray[np.int64], other: NDArray[np.int64] | int) -> Array:
        common = np.minimum(corner[one], corner[other])
        overlap = np.minimum(histogram[one], histogram[other]).sum(axis=1)
        return overlap + 2 - (common[:, 0] + common[:, 2]) * (common[:, 1] + common[:, 3]) / area

    left, right = pairs.T.copy()
    alike = likeness(left, right)
    is_neighbour = np.zeros(room, bool)
    made = count
    while len(alike) and alike[best := int(alike.argmax())] > -np.inf:
        i, j = int(left[best]), int(right[best])
        size[made] = size[i] + size[j]
        corner[made] = np.minimum(corner[i], corner[j])
        histogram[made] = (histogram[i] * size[i] + histogram[j] * size[j]) / size[made]

        touched = np.flatnonzero((left == i) | (left == j) | (right == i) | (right == j))
        is_neighbour[left[touched]] = is_neighbour[right[touched]] = True
        is_neighbour[i] = is_neighbour[j] = False
        others = np.flatnonzero(is_neighbour)
        is_neighbour[others] = False
        alike[touched], left[touched], right[touched] = -np.inf, -1, -1
        renewed = touched[: len(others)]
        left[renewed], right[renewed], alike[renewed] = others, made, likeness(others, made)
        made += 1
    return corner[:made] * (1, 1, -1, -1)
