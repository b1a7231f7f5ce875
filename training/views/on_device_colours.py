"""The colour treatments of `training/views/colours.py` for a batch on any device, each sample in its own order.

Everything is computed on whole numbers in float32, with the rounding of the 8-bit operations: in exact arithmetic the
results are OpenCV's. Pixels are (B, S, 3, S) as in `on_device_resize`; a sample's picture may fill only the
upper left `side_px` of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.views.colours import SOLARIZE_THRESHOLD
from training.views.on_device_resize import round_half_up

# Which operation a sample's slot holds; 0 is none.
JITTER_CODES = {"brightness": 1, "contrast": 2, "saturation": 3, "hue": 4}
JITTER_SLOTS = len(JITTER_CODES)


def jitter_colours(pixels: Tensor, codes: Tensor, factors: Tensor, side_px: Tensor) -> Tensor:
    """Pixels after each sample's own operations, in its own order.

    Args:
        pixels: (B, S, 3, S) float32.
        codes: (B, slots), values of `JITTER_CODES` or 0.
        factors: (B, slots); for hue the step on the circle of 256, see `hue_step`.
        side_px: (B,) side of each picture, over which the mean grey of contrast is taken.
    """
    line = torch.arange(pixels.shape[1], device=pixels.device)
    inside = line < side_px[:, None]
    inside = inside[:, :, None, None] & inside[:, None, None, :]
    area = side_px.view(-1, 1, 1, 1) ** 2
    for code, factor in zip(
        codes[..., None, None, None].unbind(1), factors[..., None, None, None].unbind(1), strict=True
    ):
        grey = grey_of(pixels)
        mean = (torch.where(inside, grey, 0).sum((1, 2, 3), keepdim=True) / area).round()
        # Brightness blends with black, contrast with the mean grey, saturation with each pixel's own grey.
        other = torch.where(code == 3, grey, torch.where(code == 2, mean, 0))
        blend = (pixels * factor + other * (1 - factor)).clamp(0, 255)
        blend = torch.where(code == 3, blend.round(), blend.floor())
        pixels = torch.where(code == 4, turn_hue(pixels, factor), torch.where(code == 0, pixels, blend))
    return pixels


def grey_of(pixels: Tensor) -> Tensor:
    """(B, S, 1, S) grey values, in OpenCV's fixed-point weights (float32 holds these sums exactly)."""
    red, green, blue = pixels.split(1, dim=2)
    return ((9798 * red + 19235 * green + 3735 * blue + 16384) / 32768).floor()


def turn_hue(pixels: Tensor, step: Tensor) -> Tensor:
    """Pixels with their hue turned by `step` on a circle of 256, by way of 8-bit hue, saturation and value."""
    red, green, blue = pixels.split(1, dim=2)
    value = pixels.amax(2, keepdim=True)
    chroma = value - pixels.amin(2, keepdim=True)
    # OpenCV divides by multiplying with a rounded 12-bit reciprocal.
    saturation = (chroma * (255 * 4096 / value.clamp(min=1)).round() / 4096 + 0.5).floor()
    sector = torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sector = torch.where(value == red, green - blue, sector)
    hue = (sector * (256 * 4096 / (6 * chroma.clamp(min=1))).round() / 4096 + 0.5).floor()
    hue = torch.where(hue < 0, hue + 256, hue).clamp(max=255) + step
    hue = torch.where(hue > 255, hue - 256, hue) * (6 / 255)  # on the way back OpenCV's circle has 255 steps
    # How far each channel falls below the value: red peaks at 0, green at 2, blue at 4 sixths of the circle.
    phase = hue + (5 - 2 * torch.arange(3, device=pixels.device).view(3, 1))
    phase = torch.where(phase >= 6, phase - 6, phase)
    fall = torch.minimum(phase, 4 - phase).clamp(0, 1)
    return (value * (1 - saturation / 255 * fall)).round()


def hue_step(factor: float) -> int:
    """The 8-bit hue's step for a hue factor from -0.5 to 0.5, in 0…255."""
    return int(factor * 255) % 256


def solarize(pixels: Tensor) -> Tensor:
    """Pixels with the bright ones inverted."""
    return torch.where(pixels < SOLARIZE_THRESHOLD, pixels, 255 - pixels)


def blur_and_place(pixels: Tensor, taps: Tensor, side_px: Tensor, left_px: Tensor, top_px: Tensor) -> Tensor:
    """Blurred (B, S, 3, S) pictures, each laid with its corner at (`left_px`, `top_px`); 0 where there is none.

    The move costs nothing: it is a shift of the rows of the blur's matrices. What leaves the square is lost.
    """
    count, size = pixels.shape[:2]
    columns = blur_weights(taps, side_px, left_px, size).to(pixels.dtype)
    rows = blur_weights(taps, side_px, top_px, size).to(pixels.dtype)
    blurred = pixels.flatten(1, 2) @ columns.mT
    return round_half_up(rows @ blurred.view(count, size, 3 * size)).view(count, size, 3, size)


def blur_weights(taps: Tensor, side_px: Tensor, offset_px: Tensor, size: int) -> Tensor:
    """(B, S, S) matrices that blur a line of `side_px` pixels, mirrored at its ends, and move it by `offset_px`.

    Args:
        taps: (B, radius + 1) from `blur_taps`, centre first.
        side_px: (B,) length of each line.
        offset_px: (B,) where each line begins in the result.
        size: S.
    """
    line = torch.arange(size, device=taps.device)
    side = side_px.long().view(-1, 1, 1)
    target = line[:, None] - offset_px.long().view(-1, 1, 1)
    radius = taps.shape[1] - 1
    taps = torch.nn.functional.pad(taps, (0, 1))  # farther than the radius: 0

    def tap(distance: Tensor) -> Tensor:
        index = distance.clamp(0, radius + 1)
        return taps.gather(1, index.flatten(1)).view(index.shape)

    weights = tap((target - line).abs())
    weights = weights + torch.where(line > 0, tap(target + line), 0)
    weights = weights + torch.where(line < side - 1, tap(2 * (side - 1) - target - line), 0)
    return torch.where((target >= 0) & (target < side) & (line < side), weights, 0)


def blur_taps(sigma_px: float) -> np.ndarray:
    """The centre and one side of OpenCV's 8-bit Gaussian kernel: multiples of 1/256 with the sum 1; [1] for none."""
    if sigma_px <= 0:
        return np.ones(1)
    radius = (int(np.rint(sigma_px * 6 + 1)) | 1) // 2
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_px) ** 2)
    exact = kernel[:radius] / kernel.sum() * 256
    taps, error = np.zeros(radius), 0.0
    for place in range(radius):  # from the outside in, each rounding error passed on
        taps[place] = np.rint(exact[place] + error)
        error += exact[place] - taps[place]
    return np.concatenate([[256 - 2 * taps.sum()], taps[::-1]]) / 256
