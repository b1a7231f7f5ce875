"""Features of pictures: one per region and per cell of a coarse grid, stage by stage.

Shapes: I pictures, N regions, L = h * w cells, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...region_pooling import Offset, pool_regions
from ...regions import check_regions
from .load import FeatureModel

LARGEST_GRID = 14
"""Maps with more cells per side are averaged to coarser grids: neighbouring cells of early maps say the same."""

REGION_BINS = 4
"""Bins per side that a region is pooled to before their average is taken."""


@dataclass
class StageFeatures:
    """Features of one stage; cells and norms are empty unless wanted."""

    regions: Tensor  # (N, C), image by image
    cells: Tensor  # (I, L, C), row by row
    grid: tuple[int, int]  # h and w of the cells
    norms: Tensor  # (I, h', w') length of every cell of the map itself


@torch.no_grad()
def read_features(
    model: FeatureModel,
    pixels: Tensor,
    boxes: list[Tensor] | None = None,
    *,
    cells: bool = False,
    batch_size: int = 16,
    largest_grid: int = LARGEST_GRID,
) -> list[StageFeatures]:
    """Features of all stages, on the CPU, from (I, 3, S, S) uint8 pixels and the (R_i, 4) boxes of each, or none."""
    columns: list[dict[str, list[Tensor]]] = [{"regions": [], "cells": [], "norms": []} for _ in model.stages]
    grids = [(0, 0)] * len(columns)
    for start in range(0, len(pixels), batch_size):
        batch = slice(start, start + batch_size)
        maps = model(pixels[batch])
        if boxes is not None:
            for parts, regions in zip(columns, pool_stages(model, maps, boxes[batch]), strict=True):
                parts["regions"].append(regions.cpu())
        for number, feature_map in enumerate(maps if cells else []):
            coarse = coarsen(feature_map, largest_grid)
            grids[number] = (coarse.shape[2], coarse.shape[3])
            columns[number]["cells"].append(coarse.flatten(2).transpose(1, 2).cpu())
            columns[number]["norms"].append(feature_map.norm(dim=1).cpu())
    return [
        StageFeatures(grid=grid, **{name: torch.cat(part) if part else torch.zeros(0) for name, part in parts.items()})
        for grid, parts in zip(grids, columns, strict=True)
    ]


@torch.no_grad()
def read_whole(model: FeatureModel, pixels: Tensor, *, batch_size: int = 16) -> list[StageFeatures]:
    """Features of all stages, on the CPU, of (I, 3, S, S) pictures as wholes: the mean of every map, and what a region
    stage gives for the whole picture; one row per picture among the regions, and no cells."""
    columns: list[list[Tensor]] = [[] for _ in model.stages]
    for start in range(0, len(pixels), batch_size):
        maps = model(pixels[start : start + batch_size])
        for stage, parts in enumerate(columns):
            parts.append(pool_whole(model, maps, stage).cpu())
    none = torch.zeros(0)
    return [StageFeatures(torch.cat(parts) if parts else none, none, (0, 0), none) for parts in columns]


def pool_stages(model: FeatureModel, maps: Sequence[Tensor], boxes: list[Tensor]) -> list[Tensor]:
    """(N, C) features of ragged boxes at every stage, image by image."""
    return [pool_stage(model, maps, stage, boxes) for stage in range(len(maps))]


def pool_stage(model: FeatureModel, maps: Sequence[Tensor], stage: int, boxes: list[Tensor]) -> Tensor:
    """(N, C) features of ragged boxes at one stage, image by image."""
    if model.region_net is not None and stage == len(maps) - 1:
        return _embed_regions(model, maps, boxes, model.offset(stage - 2, maps[stage - 2]))
    return pool_boxes(maps[stage], boxes, model.offset(stage, maps[stage]))


def pool_whole(model: FeatureModel, maps: Sequence[Tensor], stage: int) -> Tensor:
    """(B, C) features of pictures as wholes: the mean of the map, or what a region stage gives for the whole."""
    if model.region_net is not None and stage == len(maps) - 1:
        return _embed_regions(model, maps, [torch.tensor([[0.0, 0.0, 1.0, 1.0]])] * len(maps[stage]), 0.0)
    return maps[stage].mean((2, 3))


def _embed_regions(model: FeatureModel, maps: Sequence[Tensor], boxes: list[Tensor], offset: Offset) -> Tensor:
    """(N, C) features of the stage that runs on regions of the map two before it."""
    net, regions = model.region_net, check_regions(boxes, len(maps[-3]), device=maps[-3].device)
    rows: Tensor = net.embed_regions(maps[-3], regions, net.config.region_bins, offset)
    return rows


def pool_boxes(feature_map: Tensor, boxes: list[Tensor], offset: Offset = 0.0) -> Tensor:
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


def coarsen(feature_map: Tensor, largest: int = LARGEST_GRID) -> Tensor:
    """The map averaged to at most `largest` cells per side; by whole cells where its sides allow."""
    grid = (_coarse_side(feature_map.shape[2], largest), _coarse_side(feature_map.shape[3], largest))
    if grid == tuple(feature_map.shape[2:]):
        return feature_map
    return F.adaptive_avg_pool2d(feature_map, grid)


def _coarse_side(side: int, largest: int) -> int:
    factors = (factor for factor in range(1, side + 1) if side % factor == 0 and side // factor <= largest)
    coarse = side // next(factors)
    return coarse if coarse >= largest // 2 else min(side, largest)


def cell_centres(grid: tuple[int, int]) -> Tensor:
    """(L, 2) x and y of the cells, in [0, 1]."""
    height, width = grid
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def cell_boxes(grid: tuple[int, int], offset: Offset = 0.0) -> Tensor:
    """(L, 4) unit boxes that the cells lie in the middle of, row by row, for a map read at `FeatureModel.offset`.

    They may begin outside of the picture: cells of padded convolutions do.
    """
    right, down = offset if isinstance(offset, tuple) else (offset, offset)
    size = torch.tensor([grid[1], grid[0]])
    corners = cell_centres(grid) - (torch.tensor([right, down]) + 0.5) / size
    return torch.cat([corners, corners + 1 / size], 1)


def border_distances(grid: tuple[int, int]) -> Tensor:
    """(L,) cells between each cell and the nearest border; 0 for those that touch it."""
    height, width = grid
    rows = torch.minimum(torch.arange(height), height - 1 - torch.arange(height))
    columns = torch.minimum(torch.arange(width), width - 1 - torch.arange(width))
    return torch.minimum(rows[:, None], columns[None, :]).flatten()
