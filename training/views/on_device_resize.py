"""Windows of a batch of images, resized to squares by two batched matrix products.

An antialiased bilinear resize is separable: `rows @ image @ columns.T` with triangle weights. A window, a mirror image
and a square smaller than the result are rows and columns of those weights, so a batch of them all needs no loop.

Pixels are (B, H, 3, W) here, row by row and each row channel by channel: both products then read and write them as
they lie. 8-bit values are whole numbers in a floating-point tensor, rounded after each product as the 8-bit resize of
the CPU path is. float16 holds them exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor


def matmul_dtype(device: torch.device) -> torch.dtype:
    """What pixels and weights are multiplied in: float16 is fast on accelerators and off by at most a grey level."""
    return torch.float32 if device.type == "cpu" else torch.float16


def unpack_images(pixels: Tensor, places: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(N, H, 3, W) images of one size from images of many sizes that lie one after the other.

    Args:
        pixels: (P, 3) uint8, the pixels of all images.
        places: (N, 3), each image's first pixel, height and width.
        size: H and W, at least the largest image's. Beyond an image its border is repeated; no window reaches there.
        dtype: Of the result.
    """
    first, height, width = places[:, :, None, None].unbind(1)
    row = torch.arange(size[0], device=pixels.device)[:, None].minimum(height - 1)
    column = torch.arange(size[1], device=pixels.device).minimum(width - 1)
    index = first + row * width + column
    padded = pixels.index_select(0, index.flatten()).view(*index.shape, 3)
    return padded.transpose(2, 3).to(dtype, memory_format=torch.contiguous_format)


def resize_windows(images: Tensor, windows: Tensor, side_px: Tensor, flip: Tensor, size: int) -> Tensor:
    """(B, S, 3, S) windows of (B, H, 3, W) images, resized to `side_px` in the upper left corner, else 0.

    Args:
        images: Whole numbers from 0 to 255.
        windows: (B, 4) pixels x1, y1, x2, y2.
        side_px: (B,) side of each square, at most S.
        flip: (B,) boolean, whether left and right change places.
        size: S.
    """
    count, height, _, width = images.shape
    x1, y1, x2, y2 = windows.unbind(1)
    columns = resize_weights(x1, x2, side_px, flip, size, width).to(images.dtype)
    rows = resize_weights(y1, y2, side_px, torch.zeros_like(flip), size, height).to(images.dtype)
    narrow = round_half_up(images.flatten(1, 2) @ columns.mT)  # columns first, as in the 8-bit resize
    return round_half_up(rows @ narrow.view(count, height, 3 * size)).view(count, size, 3, size)


def resize_weights(start: Tensor, end: Tensor, side_px: Tensor, flip: Tensor, size: int, length: int) -> Tensor:
    """(B, S, L) weights of the L pixels of a line in each of S results: `F.interpolate` with `antialias`, and PIL.

    Args:
        start: (B,) the window's first pixel.
        end: (B,) the pixel behind its last one.
        side_px: (B,) how many results the window gives; rows from there on are 0.
        flip: (B,) boolean, whether the results come in reverse order.
        size: S.
        length: L.
    """
    start, end, side_px, flip = (line[:, None] for line in (start, end, side_px, flip))
    result = torch.arange(size, device=start.device).expand(len(start), size)
    place = torch.where(flip, side_px - 1 - result, result)
    scale = (end - start) / side_px
    # A pixel counts by how near its centre is to the result's; when shrinking, the triangle is as wide as two results.
    centre = start + (place + 0.5) * scale
    pixel = torch.arange(length, device=start.device)
    distance = (pixel + 0.5 - centre[..., None]).abs()
    inside = ((pixel >= start) & (pixel < end))[:, None] & (result < side_px)[..., None]
    weights = torch.where(inside, (1 - distance / scale.clamp(min=1)[..., None]).clamp(min=0), 0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)


def round_half_up(values: Tensor) -> Tensor:
    """Values rounded to 8 bit, in the dtype they have."""
    return (values.float() + 0.5).floor().clamp(0, 255).to(values.dtype)
