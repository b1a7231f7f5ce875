"""Augmentation 3: re-positioning. Move the whole foreground to another place in the view.

All regions move by one vector, so their relative places, nesting and overlaps stay; only absolute position and the
distance to the (zero-padded) border change. How far they can move is their slack: the free space beside the union of
the boxes. The paper's figure keeps the size, and a foreground that fills the view then cannot move at all. Scaling
the foreground down first guarantees slack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..regions import boxes_to_pixels

# Range of the foreground's scale. "paper": rigid size, as measured on the paper's figure. "scaled": ours; with rigid
# size four boxes of a typical photo leave no slack, and moving them by nothing taught a trial network nothing.
FOREGROUND_SCALES: dict[str, tuple[float, float]] = {"paper": (1.0, 1.0), "scaled": (0.45, 0.9)}
# A foreground with less room than this share of the view, on both axes, counts as unable to move.
LEAST_SLACK = 0.05


@dataclass(frozen=True)
class Placement:
    """Where a view, resized to `side_px` pixels, goes on a canvas of its original size."""

    side_px: int
    left_px: int
    top_px: int
    slack: tuple[float, float] = (0.0, 0.0)  # free share of the canvas, horizontally and vertically

    @property
    def can_move(self) -> bool:
        """Whether there was room for a shift that matters."""
        return max(self.slack) >= LEAST_SLACK

    def overlap(self, size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Rows and columns of an (H, W) canvas that the view lands on, and those of the view that land there."""
        canvas, view = [], []
        for start, length in zip((self.top_px, self.left_px), size, strict=True):
            first, last = max(start, 0), min(start + self.side_px, length)
            canvas.append(slice(first, last))
            view.append(slice(first - start, last - start))
        return (canvas[0], canvas[1]), (view[0], view[1])


def sample_placement(
    boxes: np.ndarray, view_px: int, scale_range: tuple[float, float], rng: np.random.Generator
) -> Placement:
    """A random place for the foreground: one scale, then one shift, uniform over all that keep every box in the view.

    Resize the view to `placement.side_px` before `reposition_foreground`; the boxes follow with `place_boxes`. The
    scale, of the foreground relative to the view, lies in a range such as those of `FOREGROUND_SCALES`.
    """
    if len(boxes) == 0:
        raise ValueError("there is no box to place; mark the sample as having no foreground instead.")
    low, high = scale_range
    if not 0 < low <= high <= 1:
        raise ValueError(f"the foreground's scale range is {scale_range}; expected 0 < least <= greatest <= 1.")
    side = max(1, round(view_px * rng.uniform(low, high)))
    # The union of the boxes and of their pixels: neither may leave the view by a rounded fraction.
    both = np.concatenate([boxes_to_pixels(boxes, (side, side)), np.minimum(np.maximum(boxes, 0.0), 1.0) * side])
    first, last = both.min(0).tolist()[:2], both.max(0).tolist()[2:]
    extent = [(math.floor(a), math.ceil(b)) for a, b in zip(first, last, strict=True)]
    left, top = (int(rng.integers(-a, view_px - b + 1)) for a, b in extent)
    horizontal, vertical = (1 - (b - a) / view_px for a, b in extent)
    return Placement(side, left, top, (horizontal, vertical))


def place_boxes(boxes: np.ndarray, placement: Placement, view_px: int) -> np.ndarray:
    """Unit boxes after the move, in coordinates of the canvas."""
    corner = np.array([placement.left_px, placement.top_px] * 2, dtype=np.float64)
    return (np.asarray(boxes, dtype=np.float64) * placement.side_px + corner) / view_px


def placed_pixel_boxes(boxes: np.ndarray, placement: Placement) -> np.ndarray:
    """(R, 4) integer boxes on the canvas: rounded before the move, so they move by exactly the pixels' vector."""
    pixels = boxes_to_pixels(boxes, (placement.side_px, placement.side_px))
    return pixels + np.array([placement.left_px, placement.top_px] * 2)


def reposition_foreground(pixels: Tensor, placement: Placement, canvas: Tensor) -> Tensor:
    """A copy of the canvas (…, C, H, W) with `pixels` (…, C, side, side) laid on it at their new place.

    What sticks out of the canvas is lost. Everything that lands on the canvas is kept, foreground or not: combine with
    `replace_background` to keep the regions only.
    """
    if pixels.shape[-2:] != (placement.side_px, placement.side_px):
        raise ValueError(
            f"pixels are {tuple(pixels.shape[-2:])}, but the placement is for a side of {placement.side_px}."
        )
    (rows, columns), (own_rows, own_columns) = placement.overlap((canvas.shape[-2], canvas.shape[-1]))
    moved = canvas.clone()
    moved[..., rows, columns] = pixels[..., own_rows, own_columns]
    return moved
