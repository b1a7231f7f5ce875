"""How 8-bit pixels become what networks see: normalised with the statistics of their own pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modeling_decodepos.imagenet import IMAGE_MEAN, IMAGE_STD


def statistics_of(model: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the pixels that a model of ours was built for; ImageNet's for any other."""
    config = getattr(model, "config", None)
    return getattr(config, "image_mean", IMAGE_MEAN), getattr(config, "image_std", IMAGE_STD)


def normalise(
    pixels: Tensor, image_mean: Sequence[float] = IMAGE_MEAN, image_std: Sequence[float] = IMAGE_STD
) -> Tensor:
    """Float (B, 3, H, W) pixels of mean zero from 8-bit ones, where they lie and in their memory layout.

    Of regions alone, (B, R, 3, H, W).
    """
    if pixels.ndim == 5:
        return normalise(pixels.flatten(0, 1), image_mean, image_std).unflatten(0, pixels.shape[:2])
    mean, std = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) * 255 for values in (image_mean, image_std)
    )
    if pixels.is_contiguous(memory_format=torch.channels_last):
        # Repeated over a line of pixels: going through memory three numbers at a time takes a CPU twice as long.
        line = (1, 3, 1, pixels.shape[-1])
        mean, std = (value.expand(line).contiguous(memory_format=torch.channels_last) for value in (mean, std))
    return pixels.to(torch.float32, copy=True).sub_(mean).div_(std)
