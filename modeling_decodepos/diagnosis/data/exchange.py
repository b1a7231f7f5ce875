"""One region, and one thing about it exchanged: its surroundings, its content, or its surroundings and its place.

Pixels are (3, S, S) uint8 of a square view, boxes (4,) unit xyxy.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...background import foreground_mask, replace_background
from ...regions import boxes_to_pixels
from ...repositioning import (
    FOREGROUND_SCALES,
    place_boxes,
    placed_pixel_boxes,
    reposition_foreground,
    sample_placement,
)


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """(3, H, W) uint8 pixels at another size."""
    return F.interpolate(pixels[None], size=(height, width), mode="bilinear", antialias=True)[0]


def exchange_surroundings(pixels: Tensor, box: np.ndarray, other: Tensor) -> Tensor:
    """The region where it is, before another image."""
    size = (pixels.shape[1], pixels.shape[2])
    return replace_background(pixels, other, foreground_mask(boxes_to_pixels(box[None], size), size))


def exchange_content(pixels: Tensor, box: np.ndarray, other: Tensor, other_box: np.ndarray) -> Tensor:
    """Another image's region, stretched into this region's box; all around it stays."""
    size = (pixels.shape[1], pixels.shape[2])
    (x1, y1, x2, y2), (left, top, right, bottom) = boxes_to_pixels(np.stack([box, other_box]), size)
    exchanged = pixels.clone()
    exchanged[:, y1:y2, x1:x2] = resize(other[:, top:bottom, left:right], y2 - y1, x2 - x1)
    return exchanged


def move_elsewhere(
    pixels: Tensor, box: np.ndarray, other: Tensor, rng: np.random.Generator
) -> tuple[Tensor, np.ndarray]:
    """The region alone, smaller and in a random place before another image, and its box there."""
    side = pixels.shape[1]
    placement = sample_placement(box[None], side, FOREGROUND_SCALES["scaled"], rng)
    moved = reposition_foreground(resize(pixels, placement.side_px, placement.side_px), placement, other)
    mask = foreground_mask(placed_pixel_boxes(box[None], placement), (side, side))
    return replace_background(moved, other, torch.from_numpy(mask)), place_boxes(box[None], placement, side)[0]
