"""Features of pictures: one per region and per cell of a coarse grid, stage by stage.

Shapes: I pictures, N regions, L = h * w cells, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ...region_pooling import pool_regions
from .load import FeatureModel

LARGEST_GRID = 14
"""Maps with more cells per side are averaged to coarser grids: neighbouring cells of early maps say the same."""

REGION_BINS = 4
"""Bins per side that a region is pooled to before their average is taken."""

Tick = Callable[[int], None]


@dataclass
class StageFeatures:
    """Features of one stage.

    Attributes:
        regions: (N, C), image by image.
        cells: (I, L, C), row by row; empty unless wanted.
        grid: h and w of the cells.
        norms: (I, h', w') length of every cell of the map itself; empty unless wanted.
    """

    regions: Tensor
    cells: Tensor
    grid: tuple[int, int]
    norms: Tensor


@dataclass
class _Parts:
    regions: list[Tensor] = field(default_factory=list)
    cells: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    grid: tuple[int, int] = (0, 0)


@torch.no_grad()
def read_features(
    model: FeatureModel,
    pixels: Tensor,
    boxes: list[Tensor] | None = None,
    *,
    cells: bool = False,
    batch_size: int = 16,
    tick: Tick = lambda pictures: None,
) -> list[StageFeatures]:
    """Features of all stages, on the CPU.

    Args:
        model: The network.
        pixels: (I, 3, S, S) uint8.
        boxes: (R_i, 4) of each picture, or none.
        cells: Whether the cells are wanted, too.
        batch_size: Pictures at a time.
        tick: Is told how many pictures were done.
    """
    stages = [_Parts() for _ in model.stages]
    for start in range(0, len(pixels), batch_size):
        batch = pixels[start : start + batch_size]
        rows = None if boxes is None else boxes[start : start + batch_size]
        maps = model(batch)
        if rows is not None:
            for parts, regions in zip(stages, pool_stages(model, maps, rows), strict=True):
                parts.regions.append(regions.cpu())
        for parts, feature_map in zip(stages, maps, strict=True):
            if cells:
                coarse = coarsen(feature_map)
                parts.grid = (coarse.shape[2], coarse.shape[3])
                parts.cells.append(coarse.flatten(2).transpose(1, 2).cpu())
                parts.norms.append(feature_map.norm(dim=1).cpu())
        tick(len(batch))
    nothing = torch.zeros(0)
    return [
        StageFeatures(
            torch.cat(parts.regions) if parts.regions else nothing,
            torch.cat(parts.cells) if parts.cells else nothing,
            parts.grid,
            torch.cat(parts.norms) if parts.norms else nothing,
        )
        for parts in stages
    ]


def pool_stages(model: FeatureModel, maps: Sequence[Tensor], boxes: list[Tensor]) -> list[Tensor]:
    """(N, C) features of ragged boxes at every stage, image by image."""
    read = maps if model.embed is None else maps[:-1]
    rows = [pool_boxes(feature_map, boxes, model.offset(feature_map)) for feature_map in read]
    return rows if model.embed is None else [*rows, model.embed(maps, boxes)]


def pool_boxes(feature_map: Tensor, boxes: list[Tensor], offset: float = 0.0) -> Tensor:
    """(N, C) features of ragged boxes, image by image; `offset` as `FeatureModel.offset` gives it."""
    most = max((len(rows) for rows in boxes), default=0)
    if most == 0:
        return feature_map.new_zeros((0, feature_map.shape[1]))
    padded = torch.zeros(len(boxes), most, 4)
    valid = torch.zeros(len(boxes), most, dtype=torch.bool)
    for number, rows in enumerate(boxes):
        padded[number, : len(rows)] = rows
        valid[number, : len(rows)] = True
    pooled = pool_regions(feature_map, padded.to(feature_map.device), REGION_BINS, offset=offset)
    return pooled.mean((3, 4))[valid.to(feature_map.device)]


def coarsen(feature_map: Tensor) -> Tensor:
    """The map averaged to at most `LARGEST_GRID` cells per side; by whole cells where its sides allow."""
    grid = (_coarse_side(feature_map.shape[2]), _coarse_side(feature_map.shape[3]))
    if grid == tuple(feature_map.shape[2:]):
        return feature_map
    return F.adaptive_avg_pool2d(feature_map, grid)


def _coarse_side(side: int) -> int:
    factors = (factor for factor in range(1, side + 1) if side % factor == 0 and side // factor <= LARGEST_GRID)
    coarse = side // next(factors)
    return coarse if coarse >= LARGEST_GRID // 2 else min(side, LARGEST_GRID)


def cell_centres(grid: tuple[int, int]) -> Tensor:
    """(L, 2) x and y of the cells, in [0, 1]."""
    height, width = grid
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def border_distances(grid: tuple[int, int]) -> Tensor:
    """(L,) cells between each cell and the nearest border; 0 for those that touch it."""
    height, width = grid
    rows = torch.minimum(torch.arange(height), height - 1 - torch.arange(height))
    columns = torch.minimum(torch.arange(width), width - 1 - torch.arange(width))
    return torch.minimum(rows[:, None], columns[None, :]).flatten()
