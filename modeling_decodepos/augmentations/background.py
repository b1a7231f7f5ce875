"""Augmentation 2: background. Keep the regions' pixels and replace everything around them by another image.

One mask does two jobs, as in the paper's figure: outside the regions it replaces the surroundings, and where region
augmentation cut into a region it lets the donor show through.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..regions import rasterise


def replace_background(pixels: Tensor, background: Tensor, foreground: Tensor | np.ndarray) -> Tensor:
    """`pixels` (…, C, H, W) where the foreground mask (…, H, W) is true, `background` of the same shape elsewhere."""
    if pixels.shape != background.shape:
        raise ValueError(
            f"background has shape {tuple(background.shape)}, expected {tuple(pixels.shape)} like pixels: resize it."
        )
    foreground = torch.as_tensor(foreground, device=pixels.device)
    return torch.where(foreground[..., None, :, :], pixels, background)


def foreground_mask(pixel_boxes: np.ndarray, size: tuple[int, int], cut: np.ndarray | None = None) -> np.ndarray:
    """(H, W) boolean union of integer boxes, without the pixels that `sample_region_cut` cut.

    The boxes come from `boxes_to_pixels`, or from `placed_pixel_boxes` when the regions were moved.
    """
    mask = rasterise(pixel_boxes, size)
    return mask if cut is None else mask & ~cut


def limit_coverage(pixel_boxes: np.ndarray, size: tuple[int, int], most: float) -> np.ndarray:
    """(R,) flags of the boxes to keep so that their union covers at most a share `most` of the view.

    Where the foreground fills the view there are no surroundings left to replace. The largest boxes go first, until
    the rest fits; possibly none is kept.
    """
    keep = np.ones(len(pixel_boxes), dtype=bool)
    areas = (pixel_boxes[:, 2:] - pixel_boxes[:, :2]).prod(1)
    for largest in np.argsort(-areas, kind="stable"):
        covered = np.count_nonzero(rasterise(pixel_boxes[keep], size)) / (size[0] * size[1])
        if covered <= most:
            break
        keep[largest] = False
    return keep
