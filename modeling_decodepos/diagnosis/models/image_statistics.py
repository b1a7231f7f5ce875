"""The control that has learned nothing and sees no farther than a cell: colours and edges of each cell of a grid.

A region feature pooled from these maps knows its own pixels, and those that share a cell with it. Whatever a network
shows beyond this is the network's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .load import FeatureModel

ORIENTATIONS = 8
CHANNELS = 6 + ORIENTATIONS


def pixel_statistics(pixels: Tensor) -> Tensor:
    """(B, 14, H, W): colours, their squares and edges of every pixel, to be averaged over cells of any grid."""
    grey = F.pad(pixels.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    dx = (grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]) / 2
    dy = (grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]) / 2
    turn = torch.atan2(dy, dx + 1e-12) / math.pi * (ORIENTATIONS / 2)
    strength = (dx.square() + dy.square() + 1e-12).sqrt()
    steps = torch.arange(ORIENTATIONS, device=pixels.device).view(1, -1, 1, 1)
    away = ((turn - steps + ORIENTATIONS / 2) % ORIENTATIONS - ORIENTATIONS / 2).abs()
    return torch.cat([pixels, pixels.square(), strength * (1 - away).clamp(min=0)], 1)


def pool_statistics(statistics: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, 14, h, w) from `pixel_statistics`: mean and deviation of each colour, edges in 8 directions, per cell."""
    mean, square, edges = F.adaptive_avg_pool2d(statistics, grid).split([3, 3, ORIENTATIONS], 1)
    std = (square - mean.square()).clamp(min=0).add(1e-8).sqrt()
    return torch.cat([mean, std, edges], 1)


def statistics_model(model: FeatureModel, grids: list[tuple[int, int]]) -> FeatureModel:
    """The control of a model: the same stages with the same grids, at the same picture size."""

    def maps(pixels: Tensor) -> list[Tensor]:
        statistics = pixel_statistics(pixels)
        return [pool_statistics(statistics, grid) for grid in grids]

    return FeatureModel("image statistics", model.stages, maps, model.size_px, device=model.device)
