"""Augmentation 1: region augmentation. Cut a limited share out of every region, and out of its surroundings.

Cutting each box on its own over-cuts boxes that overlap. Region-collaborative cutout goes from the largest box to the
smallest, looks at what is already gone from each, and restores a box that lost more than its share before it cuts. The
mean share per region is then the ratio asked for. It is no hard cap: a small box that is restored changes the larger
one around it, and the worst of nine overlapping boxes loses about 1.4 times the ratio.

`sample_region_cut` draws a boolean mask, true where pixels go. `cut_regions` applies it. Cut after flipping, with
flipped boxes: cutting first would remove the mirror image of the intended area.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..regions import boxes_to_pixels

PixelBox = list[int]  # x1, y1, x2, y2, end exclusive

# The random boxes of the follow-up's published run: one per cell of a 3 x 3 grid.
GRID_BOX_AREA = (0.12, 0.30)
GRID_BOX_ASPECT = (0.5, 2.0)


def sample_region_cut(
    boxes: np.ndarray,
    size: tuple[int, int],
    ratio: float,
    rng: np.random.Generator,
    form: str = "collaborative",
) -> np.ndarray:
    """(H, W) boolean mask, true where region augmentation removes the pixel: a share of each region, in [0, 1).

    Boxes are those of the view as it will be seen (after its flip); those without area are ignored. The mask has the
    view's pixels for a CNN, its patch grid for a ViT (then enlarge the mask with `enlarge_cut`).
    """
    if form not in CUT_FORMS:
        raise ValueError(f"cut form {form!r} is unknown; expected one of {', '.join(CUT_FORMS)}.")
    if not 0 <= ratio < 1:
        raise ValueError(f"cut ratio is {ratio}; expected a share in [0, 1).")
    cut = np.zeros(size, dtype=bool)
    if ratio > 0:
        pixel_boxes = boxes_to_pixels(boxes, size)
        areas = (pixel_boxes[:, 2:] - pixel_boxes[:, :2]).prod(1)
        # Largest first: the smaller boxes, whose share swings most, have the last word.
        order = np.argsort(-areas, kind="stable")
        for box in pixel_boxes[order[areas[order] > 0]].tolist():
            CUT_FORMS[form](cut, box, ratio, rng)
    return cut


def cut_regions(pixels: Tensor, cut: Tensor | np.ndarray, fill: Tensor | float = 0.0) -> Tensor:
    """Pixels (…, C, H, W) with those of a boolean mask (…, H, W) replaced by a number, or one per channel (C,).

    In normalised pixels, a fill of 0 is the data set's mean.
    """
    fill = torch.as_tensor(fill, dtype=pixels.dtype, device=pixels.device)
    cut = torch.as_tensor(cut, device=pixels.device)
    return torch.where(cut[..., None, :, :], fill.view(-1, 1, 1), pixels)


def enlarge_cut(cut: np.ndarray, cell_px: int) -> np.ndarray:
    """A cut drawn on a patch grid, enlarged to pixels: whole patches are cut, none is cut in half."""
    return cut.repeat(cell_px, axis=0).repeat(cell_px, axis=1) if cell_px > 1 else cut


def sample_grid_boxes(rng: np.random.Generator, cells: int = 3) -> np.ndarray:
    """(cells², 4) random boxes, one around each cell of a grid; they carry the cuts into the surroundings."""
    count = cells * cells
    row, column = np.divmod(np.arange(count), cells)
    # The centre lies in the middle half of its cell.
    centre = np.stack([column, row], axis=1) + rng.uniform(0.25, 0.75, size=(count, 2))
    area = rng.uniform(*GRID_BOX_AREA, size=count)
    aspect = np.exp(rng.uniform(np.log(GRID_BOX_ASPECT[0]), np.log(GRID_BOX_ASPECT[1]), size=count))
    half = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], axis=1) / 2
    return np.concatenate([centre / cells - half, centre / cells + half], axis=1).clip(0.0, 1.0)


def _cut_collaboratively(cut: np.ndarray, box: PixelBox, ratio: float, rng: np.random.Generator) -> None:
    """The follow-up's final form: the mean share per box is `ratio`."""
    inside = _window(cut, box)
    share = float(np.count_nonzero(inside) / inside.size)  # `mean` takes six times as long
    if share > ratio:
        inside[:] = False
        share = 0.0
    _cut_rectangle(inside, ratio - share, rng)


def _cut_independently(cut: np.ndarray, box: PixelBox, ratio: float, rng: np.random.Generator) -> None:
    """Every box for itself, as before the follow-up: overlapping boxes lose far more than `ratio`."""
    _cut_rectangle(_window(cut, box), ratio, rng)


def _cut_spilling(cut: np.ndarray, box: PixelBox, ratio: float, rng: np.random.Generator) -> None:
    """The follow-up's first public form: a full rectangle centred anywhere in the box, so it may reach beyond it."""
    inside = _window(cut, box)
    share = inside.mean()
    if 0.8 * ratio < share <= 1.2 * ratio:
        return
    if share >= 0.5 * ratio:
        inside[:] = False
    x1, y1, x2, y2 = box
    width, height = (x2 - x1) * np.sqrt(ratio), (y2 - y1) * np.sqrt(ratio)
    centre_x, centre_y = rng.uniform(x1, x2), rng.uniform(y1, y2)
    rows = np.round([centre_y - height / 2, centre_y + height / 2]).astype(int).clip(0, cut.shape[0])
    columns = np.round([centre_x - width / 2, centre_x + width / 2]).astype(int).clip(0, cut.shape[1])
    cut[rows[0] : rows[1], columns[0] : columns[1]] = True


def _cut_rectangle(inside: np.ndarray, share: float, rng: np.random.Generator) -> None:
    """Cut a rectangle of the box's own aspect ratio and `share` of its area, wholly inside it."""
    height, width = inside.shape
    if share * inside.size < 0.5:  # less than half a cell is none; else a region of one patch would always go whole
        return
    side = math.sqrt(share)
    left, top = rng.random() * width * (1 - side), rng.random() * height * (1 - side)
    inside[round(top) : round(top + height * side), round(left) : round(left + width * side)] = True


def _window(cut: np.ndarray, box: PixelBox) -> np.ndarray:
    x1, y1, x2, y2 = box
    return cut[y1:y2, x1:x2]


CUT_FORMS: dict[str, Callable[[np.ndarray, PixelBox, float, np.random.Generator], None]] = {
    "collaborative": _cut_collaboratively,
    "independent": _cut_independently,
    "spilling": _cut_spilling,
}
