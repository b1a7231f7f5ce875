"""The graph segmentation of Felzenszwalb and Huttenlocher, and what there is to know about its segments.

N segments, numbered from 0; boxes xyxy in pixels, the far border exclusive.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .inputs import Pixels

Labels = NDArray[np.int64]
Array = NDArray[np.float64]

COLOUR_BINS = 25
ORIENTATIONS = 8
STRENGTHS = 8
STRENGTH_STEP = 40  # of a Sobel derivative of 8-bit grey, which goes to 1020


@dataclass(frozen=True)
class SegmentationSettings:
    """Of one segmentation."""

    side_limit_px: int  # larger images are shrunk to this side
    scale: float  # a greater one makes larger segments; in 8-bit levels
    sigma: float  # of the blur before it, in pixels
    min_size: int  # pixels of the smallest segment


def check_opencv() -> None:
    """Raises if this OpenCV has no graph segmentation."""
    if not hasattr(cv2, "ximgproc"):
        raise ValueError(
            f"OpenCV {cv2.__version__} is here without its module ximgproc, which has the graph segmentation. Another "
            "opencv package was installed over it. Cure: pip uninstall opencv-python opencv-python-headless "
            "opencv-contrib-python, then pip install --force-reinstall opencv-contrib-python-headless"
        )


def segment_image(pixels: Pixels, settings: SegmentationSettings) -> Labels:
    """(H, W) number of the segment of every pixel, from (H, W, 3) pixels."""
    check_opencv()
    graph = cv2.ximgproc.segmentation.createGraphSegmentation(settings.sigma, settings.scale, settings.min_size)
    return graph.processImage(np.ascontiguousarray(pixels)).astype(np.int64)


def segment_sizes(labels: Labels) -> Array:
    """(N,) pixels of every segment."""
    return np.bincount(labels.ravel()).astype(np.float64)


def segment_boxes(labels: Labels) -> Array:
    """(N, 4) tight boxes."""
    count = int(labels.max()) + 1
    height, width = labels.shape
    in_column, in_row = np.zeros((count, width), bool), np.zeros((count, height), bool)
    in_column[labels, np.arange(width)[None]] = True
    in_row[labels, np.arange(height)[:, None]] = True
    left, top = in_column.argmax(1), in_row.argmax(1)
    right, bottom = width - in_column[:, ::-1].argmax(1), height - in_row[:, ::-1].argmax(1)
    return np.stack([left, top, right, bottom], axis=1).astype(np.float64)


def neighbours(labels: Labels) -> NDArray[np.int64]:
    """(E, 2) pairs of segments that share an edge of a pixel, each pair once, the smaller number first, sorted."""
    count = int(labels.max()) + 1
    keys = []
    for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        border = one != other
        a, b = one[border], other[border]
        keys.append(np.minimum(a, b) * count + np.maximum(a, b))
    return np.stack(np.divmod(np.unique(np.concatenate(keys)), count), axis=1)


def colour_histograms(labels: Labels, channels: Pixels) -> Array:
    """(N, C * 25) share of a segment's pixels in every bin, from (H, W, C) pixels; every channel sums to 1."""
    bins = channels.astype(np.int64) * COLOUR_BINS // 256
    return np.concatenate([_histogram(labels, bins[..., k], COLOUR_BINS) for k in range(bins.shape[2])], axis=1)


def texture_histograms(labels: Labels, grey: Pixels) -> Array:
    """(N, 64) share of a segment's pixels with a gradient in one of 8 directions and 8 strengths.

    All in whole numbers, so that no processor rounds a gradient into another bin.
    """
    dx, dy = (cv2.Sobel(grey, cv2.CV_16S, *order).astype(np.int64) for order in ((1, 0), (0, 1)))
    direction = 4 * (dx < 0) + 2 * (dy < 0) + (abs(dx) > abs(dy))
    strength = np.minimum(np.maximum(abs(dx), abs(dy)) // STRENGTH_STEP, STRENGTHS - 1)
    return _histogram(labels, direction * STRENGTHS + strength, ORIENTATIONS * STRENGTHS)


def _histogram(labels: Labels, bins: NDArray[np.int64], count: int) -> Array:
    size = segment_sizes(labels)
    counts = np.bincount((labels * count + bins).ravel(), minlength=len(size) * count)
    return counts.reshape(len(size), count) / size[:, None]
