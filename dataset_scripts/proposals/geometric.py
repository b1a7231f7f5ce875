"""Regions from numbers alone: annotated boxes, random ones, the cells of grids, none."""

import math

import numpy as np

from .inputs import FloatArray, ProposalInput

RANDOM_BOXES = 16
GRID_SIDES = (2, 3, 4)


def annotated(picture: ProposalInput) -> tuple[FloatArray, None]:
    """The annotated boxes, clipped to the image; those that keep no area are left out."""
    boxes, width, height = picture.annotated, picture.width, picture.height
    x1, y1 = np.maximum(boxes[:, 0], 0), np.maximum(boxes[:, 1], 0)
    x2, y2 = np.minimum(boxes[:, 0] + boxes[:, 2], width), np.minimum(boxes[:, 1] + boxes[:, 3], height)
    clipped = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)
    return clipped[(clipped[:, 2:] > 0).all(axis=1)], None


def random(picture: ProposalInput) -> tuple[FloatArray, None]:
    """Boxes wholly inside the image: 3 % to 50 % of its area, sides up to 1 : 2 apart, both log-uniform."""
    rng, width, height = picture.rng, picture.width, picture.height
    area = np.exp(rng.uniform(math.log(0.03), math.log(0.5), RANDOM_BOXES)) * width * height
    ratio = np.exp(rng.uniform(-math.log(2), math.log(2), RANDOM_BOXES))
    w = np.minimum(np.sqrt(area * ratio), width)
    h = np.minimum(np.sqrt(area / ratio), height)
    x, y = rng.random(RANDOM_BOXES) * (width - w), rng.random(RANDOM_BOXES) * (height - h)
    return np.stack([x, y, w, h], axis=1).astype(np.float32), None


def grid(picture: ProposalInput) -> tuple[FloatArray, None]:
    """The cells of a 2 x 2, a 3 x 3 and a 4 x 4 grid."""
    width, height = picture.width, picture.height
    cells = [
        (column * width / side, row * height / side, width / side, height / side)
        for side in GRID_SIDES
        for row in range(side)
        for column in range(side)
    ]
    return np.array(cells, np.float32), None


def none(picture: ProposalInput) -> tuple[FloatArray, None]:
    """No region."""
    return np.zeros((0, 4), np.float32), None
