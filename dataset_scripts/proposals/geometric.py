"""Regions without a look at the picture: annotated boxes, random ones, cells of grids, parts of a map, none."""

import math

import cv2
import numpy as np

from modeling_decodepos.data.schema import SEGMENTATION_IGNORE

from .inputs import ProposalInput, Regions, as_xywh

RANDOM_BOXES = 16
GRID_SIDES = (2, 3, 4)
MIN_AREA_FRACTION = 0.001  # of the image; what is smaller is a crumb of an object that something else hides


def annotated(picture: ProposalInput) -> Regions:
    """The annotated boxes, clipped to the image; those that keep no area are left out."""
    first, sides = picture.annotated[:, :2], picture.annotated[:, 2:]
    low = np.maximum(first, 0)
    sides = np.minimum(first + sides, np.array([picture.width, picture.height], np.float32)) - low
    return np.concatenate([low, sides], axis=1)[(sides > 0).all(axis=1)], None


def random(picture: ProposalInput) -> Regions:
    """Boxes wholly inside the image: 3 % to 50 % of its area, sides up to 1 : 2 apart, both log-uniform."""
    rng, width, height = picture.rng, picture.width, picture.height
    area = np.exp(rng.uniform(math.log(0.03), math.log(0.5), RANDOM_BOXES)) * width * height
    ratio = np.exp(rng.uniform(-math.log(2), math.log(2), RANDOM_BOXES))
    w = np.minimum(np.sqrt(area * ratio), width)
    h = np.minimum(np.sqrt(area / ratio), height)
    x, y = rng.random(RANDOM_BOXES) * (width - w), rng.random(RANDOM_BOXES) * (height - h)
    return as_xywh(np.stack([x, y, w, h], axis=1)), None


def grid(picture: ProposalInput) -> Regions:
    """The cells of a 2 x 2, a 3 x 3 and a 4 x 4 grid."""
    width, height = picture.width, picture.height
    cells = [
        (column * width / side, row * height / side, width / side, height / side)
        for side in GRID_SIDES
        for row in range(side)
        for column in range(side)
    ]
    return as_xywh(cells), None


def none(picture: ProposalInput) -> Regions:
    """No region."""
    return as_xywh([]), None


def map_masks(picture: ProposalInput) -> Regions:
    """Boxes of the connected parts of every class of the segmentation map; none where there is no map."""
    classes = picture.segmentation_map()
    if classes is None:
        return as_xywh([]), None
    parts = [np.zeros((0, 4), np.int32)]
    for value in np.unique(classes):
        if value not in (0, SEGMENTATION_IGNORE):
            _, _, found, _ = cv2.connectedComponentsWithStats((classes == value).astype(np.uint8), connectivity=8)
            parts.append(found[1:][found[1:, cv2.CC_STAT_AREA] >= MIN_AREA_FRACTION * classes.size, :4])
    return as_xywh(np.concatenate(parts)), None
