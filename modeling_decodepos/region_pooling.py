"""Region pooling: RoIAlign as two small matrix products.

RoIAlign averages bilinear samples on a regular grid inside each bin of a box. Both the interpolation and the average
are separable, so pooling a box is `rows @ feature_map @ columns.T` with tiny per-box weights: exact, deterministic, no
custom operator, and it runs in bf16 and on any device.

Shapes: B images, R regions, C channels, H W map cells, P bins per side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Offset = float | tuple[float, float]
"""Cells that a map is read further right and down: one number for both, or x and y."""


def pool_regions(
    feature_map: Tensor, boxes: Tensor, bins: int, sampling_ratio: int = 0, offset: Offset = 0.0
) -> Tensor:
    """(B, R, C, P, P) features of the boxes, equal to RoIAlign with `aligned=True` where `offset` is 0.

    The result carries gradient to the map, not to the boxes, and each (C, P, P) block lies in channels-last memory.

    Args:
        feature_map: (B, C, H, W). Channels-last memory is read in place, other memory is rearranged once.
        boxes: (B, R, 4), xyxy in [0, 1] of the image the map belongs to. A box may leave the map: samples further than
            one cell outside count as zero, nearer ones take the border's value, as in the reference operator.
        bins: Bins per side.
        sampling_ratio: Samples per bin and axis; 0 adapts to the box (one sample per started cell, but never more than
            a box as large as the map needs).
        offset: Cells that the box is read further right and down; see `cell_offset`. RoIAlign with `aligned=False`
            reads half a cell further.
    """
    if feature_map.ndim != 4:
        raise ValueError(f"feature_map has shape {tuple(feature_map.shape)}; expected (B, C, H, W).")
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or boxes.shape[0] != feature_map.shape[0]:
        raise ValueError(
            f"boxes have shape {tuple(boxes.shape)}; expected ({feature_map.shape[0]}, R, 4) to match the map's batch."
        )
    if bins < 1 or sampling_ratio < 0:
        raise ValueError(f"bins is {bins}, sampling_ratio {sampling_ratio}; expected at least 1 and at least 0.")
    batch, channels, height, width = feature_map.shape
    regions = boxes.shape[1]
    right, down = offset if isinstance(offset, tuple) else (offset, offset)
    with torch.no_grad():
        boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
        x1, y1, x2, y2 = boxes.unbind(-1)
        rows = _bilinear_weights(y1, y2, height, bins, sampling_ratio, down).to(feature_map.dtype)  # (B, R, P, H)
        columns = _bilinear_weights(x1, x2, width, bins, sampling_ratio, right).to(feature_map.dtype)  # (B, R, P, W)
    return _separable_pool(feature_map, rows, columns, (batch, regions, channels, bins))


def cell_offset(stride: float) -> float:
    """How many cells RoIAlign must read further down and right on a map of padded, strided convolutions.

    RoIAlign takes cell i to show the pixels from i * stride to (i + 1) * stride. With a kernel of odd size, padded by
    half of it, the cell is centred on pixel i * stride, near the start of them. Maps of patches are centred already.
    """
    return (1 - 1 / stride) / 2


def average_in_bins(maps: Tensor, boxes: Tensor, bins: int) -> Tensor:
    """(B, R, P, P) exact area averages of one (H, W) map per region, such as how much of each bin a mask covers.

    Unlike bilinear sampling this never looks outside the box: a mask that fills its box gives ones.

    Args:
        maps: (B, R, H, W), one map per region.
        boxes: (B, R, 4), xyxy in [0, 1].
        bins: Bins per side.
    """
    batch, regions, height, width = maps.shape
    x1, y1, x2, y2 = (side.flatten()[:, None] for side in boxes.to(maps.dtype).unbind(-1))
    rows = _area_weights(y1, y2, height, bins)
    columns = _area_weights(x1, x2, width, bins)
    shape = (batch * regions, 1, 1, bins)
    pooled = _separable_pool(maps.flatten(0, 1)[:, None], rows, columns, shape)
    return pooled.view(batch, regions, bins, bins)


def _separable_pool(feature_map: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    batch, regions, channels, bins = shape
    height, width = feature_map.shape[2:]
    by_row = feature_map.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    # One product reduces the rows for all boxes of an image at once: no copy of the map per box.
    reduced = torch.bmm(rows.reshape(batch, regions * bins, height), by_row)
    reduced = reduced.view(batch * regions * bins, width, channels)
    columns = columns[:, :, None].expand(-1, -1, bins, -1, -1).reshape(batch * regions * bins, bins, width)
    pooled = torch.bmm(columns, reduced)
    return pooled.view(batch, regions, bins, bins, channels).permute(0, 1, 4, 2, 3)


def _bilinear_weights(start: Tensor, end: Tensor, size: int, bins: int, sampling_ratio: int, offset: float) -> Tensor:
    """(…, P, size) weight of every cell in the average of a bin's bilinear samples, along one axis."""
    # Cell centres sit at whole numbers, hence the half. The order of operations is the reference operator's: it
    # decides how many samples a box whose bins are almost exactly one cell long gets.
    low, high = start * size - 0.5, end * size - 0.5
    extent = high - low
    low = low + offset
    most = sampling_ratio or math.ceil(size / bins)
    count = torch.full_like(extent, most) if sampling_ratio else torch.ceil(extent / bins).clamp(1, most)
    step = torch.arange(most, device=start.device, dtype=start.dtype)
    bin_index = torch.arange(bins, device=start.device, dtype=start.dtype)
    bin_size = (extent / bins)[..., None, None]
    positions = low[..., None, None] + bin_index[:, None] * bin_size + (step + 0.5) * bin_size / count[..., None, None]
    counted = (step < count[..., None, None]) & (positions >= -1.0) & (positions <= size)
    nearest = positions.clamp(0, size - 1)[..., None]
    cells = torch.arange(size, device=start.device, dtype=start.dtype)
    weights = (1 - (nearest - cells).abs()).clamp_(min=0) * counted[..., None]
    return weights.sum(-2) / count[..., None, None]


def _area_weights(start: Tensor, end: Tensor, size: int, bins: int) -> Tensor:
    """(…, P, size) share of every bin that each cell covers, along one axis."""
    edges = torch.linspace(0, 1, bins + 1, device=start.device, dtype=start.dtype)
    edges = (start[..., None] + (end - start)[..., None] * edges) * size
    cells = torch.arange(size, device=start.device, dtype=start.dtype)
    overlap = torch.minimum(edges[..., 1:, None], cells + 1) - torch.maximum(edges[..., :-1, None], cells)
    overlap = overlap.clamp_(min=0)
    return overlap / overlap.sum(-1, keepdim=True).clamp_(min=torch.finfo(start.dtype).tiny)
