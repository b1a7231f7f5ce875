"""Selective search and the plain boxes of its segments, on arrays.

Segmentation and filter are SoCo's. Regions are grouped twice over one segmentation, by brightness and by colour, each
with texture: what one likeness merges too early the other keeps apart, and grouping costs little beside segmenting.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from .filtering import keep_once, keep_useful
from .grouping import group_regions
from .inputs import FloatArray, Pixels, ProposalInput
from .segments import (
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


def selective(picture: ProposalInput, settings: SegmentationSettings) -> tuple[FloatArray, None]:
    """Boxes of segments and of everything merged from them."""
    if max(picture.width, picture.height) <= settings.side_limit_px:
        settings = FULL
    pixels = picture.pixels(settings.side_limit_px)
    return _kept(search(pixels, settings), pixels, picture), None


def felzenszwalb(picture: ProposalInput, settings: SegmentationSettings) -> tuple[FloatArray, None]:
    """Boxes of the segments alone."""
    pixels = picture.pixels(settings.side_limit_px)
    return _kept(segment_boxes(segment_image(pixels, settings)), pixels, picture), None


def search(pixels: Pixels, settings: SegmentationSettings) -> NDArray[np.float64]:
    """(M, 4) boxes xyxy in pixels of both groupings of an image (H, W, 3), unfiltered."""
    labels = segment_image(pixels, settings)
    sizes, boxes, pairs = segment_sizes(labels), segment_boxes(labels), neighbours(labels)
    grey, lab = (np.asarray(cv2.cvtColor(pixels, code), np.uint8) for code in (cv2.COLOR_RGB2GRAY, cv2.COLOR_RGB2LAB))
    texture, colour = texture_histograms(labels, grey), colour_histograms(labels, lab)
    brightness = colour_histograms(labels, pixels.max(axis=2, keepdims=True))
    likenesses = (np.concatenate([kind, texture], axis=1) for kind in (brightness, colour))
    return np.concatenate([group_regions(sizes, boxes, kind, pairs, labels.size) for kind in likenesses])


def _kept(boxes: NDArray[np.float64], pixels: Pixels, picture: ProposalInput) -> FloatArray:
    """Filtered xywh boxes in the image's own pixels."""
    height, width = pixels.shape[:2]
    scaled = boxes * np.array([picture.width / width, picture.height / height] * 2)
    xywh = np.concatenate([scaled[:, :2], scaled[:, 2:] - scaled[:, :2]], axis=1)
    return keep_once(keep_useful(xywh, picture.width, picture.height))
