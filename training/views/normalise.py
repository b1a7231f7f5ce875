"""How 8-bit pixels become what networks see: normalised with the statistics of ImageNet."""

import torch
from torch import Tensor

from modeling_decodepos.imagenet import IMAGE_MEAN, IMAGE_STD


def normalise(pixels: Tensor) -> Tensor:
    """Float (B, 3, H, W) pixels of mean zero from 8-bit ones, where they lie and in their memory layout."""
    mean, std = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) * 255 for values in (IMAGE_MEAN, IMAGE_STD)
    )
    if pixels.is_contiguous(memory_format=torch.channels_last):
        # Repeated over a line of pixels: going through memory three numbers at a time takes a CPU twice as long.
        line = (1, 3, 1, pixels.shape[-1])
        mean, std = (value.expand(line).contiguous(memory_format=torch.channels_last) for value in (mean, std))
    return pixels.to(torch.float32, copy=True).sub_(mean).div_(std)
