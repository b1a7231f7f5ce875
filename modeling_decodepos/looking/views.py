"""Pictures as the square views that are looked at, (3, S, S) uint8; boxes are unit xyxy of them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..data.scenes import FIRST_INDEX, render_scene, sample_scene

LARGEST_SIDE = 0.7
"""Of a box; a larger one leaves no surroundings."""


def middle_square(pixels: np.ndarray, side: int) -> Tensor:
    """The largest square in the middle of a picture (H, W, 3)."""
    return _as_view(np.asarray(ImageOps.fit(Image.fromarray(pixels), (side, side), Image.Resampling.LANCZOS)))


def scene_view(number: int, side: int) -> tuple[Tensor, Tensor]:
    """A drawn scene, which is none of those that the diagnosis draws, and the box of its largest object."""
    scene = render_scene(sample_scene(0, FIRST_INDEX["validation"] + number, side))
    sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
    fitting = np.where((sides <= LARGEST_SIDE).all(1), sides.prod(1), 0)
    return _as_view(scene.pixels), torch.from_numpy(scene.boxes[int(fitting.argmax())])


def _as_view(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()
