"""Selective search and the plain boxes of its segments.

Segmentation and filter are SoCo's. Regions are grouped twice over one segmentation, by brightness and by colour, each
with texture: what one likeness merges too early the other keeps apart, and grouping costs little beside segmenting.
"""

import cv2
import numpy as np

from .grouping import group_regions
from .inputs import FloatArray, Pixels, ProposalInput, Regions
from .segments import (
    Array,
    SegmentationSettings,
    colour_histograms,
    neighbours,
    segment_boxes,
    segment_image,
    segment_sizes,
    texture_histograms,
)

VERSION = 1  # counts changes that give other boxes

# SoCo's. 1024 px is more than COCO's longest side; it bounds time and memory on larger images.
FULL = SegmentationSettings(side_limit_px=1024, scale=300.0, sigma=0.9, min_size=100)
# About the same segments of an image of half the side. An image that is no larger than this is searched as it is.
FAST = SegmentationSettings(side_limit_px=320, scale=150.0, sigma=0.9, min_size=30)

# SoCo's rule "ratio3size0308" of which boxes are worth keeping.
MIN_SIDE_PX = 32
MAX_RATIO = 3
SIZE_RANGE = (0.3, 0.8)  # of the square root of the area, as a share of the image's


def selective(picture: ProposalInput, settings: SegmentationSettings = FULL) -> Regions:
    """Boxes of segments and of everything merged from them."""
    if max(picture.width, picture.height) <= settings.side_limit_px:
        settings = FULL
    pixels = picture.pixels(settings.side_limit_px)
    return _kept(search(pixels, settings), pixels, picture)


def felzenszwalb(picture: ProposalInput) -> Regions:
    """Boxes of the segments alone."""
    pixels = picture.pixels(FULL.side_limit_px)
    return _kept(segment_boxes(segment_image(pixels, FULL)), pixels, picture)


def search(pixels: Pixels, settings: SegmentationSettings) -> Array:
    """(M, 4) boxes xyxy in pixels of both groupings of an image (H, W, 3), unfiltered."""
    labels = segment_image(pixels, settings)
    sizes, boxes, pairs = segment_sizes(labels), segment_boxes(labels), neighbours(labels)
    grey, lab = (np.asarray(cv2.cvtColor(pixels, code), np.uint8) for code in (cv2.COLOR_RGB2GRAY, cv2.COLOR_RGB2LAB))
    texture, colour = texture_histograms(labels, grey), colour_histograms(labels, lab)
    brightness = colour_histograms(labels, pixels.max(axis=2, keepdims=True))
    likenesses = (np.concatenate([kind, texture], axis=1) for kind in (brightness, colour))
    return np.concatenate([group_regions(sizes, boxes, kind, pairs, labels.size) for kind in likenesses])


def _kept(corners: Array, pixels: Pixels, picture: ProposalInput) -> Regions:
    """The useful ones of xyxy boxes in `pixels`, as xywh in the image's own pixels, each box where it stands first."""
    height, width = pixels.shape[:2]
    scaled = corners * np.array([picture.width / width, picture.height / height] * 2)
    xywh = np.concatenate([scaled[:, :2], scaled[:, 2:] - scaled[:, :2]], axis=1)
    kept = keep_useful(xywh, picture.width, picture.height)
    _, first = np.unique(kept, axis=0, return_index=True)
    return kept[np.sort(first)], None


def keep_useful(boxes: Array, width: int, height: int) -> FloatArray:
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
