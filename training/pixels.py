"""How 8-bit pixels become what networks see: normalised with the statistics of ImageNet."""

import torch
from torch import Tensor

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def normalise(pixels: Tensor) -> Tensor:
    """Float (B, 3, H, W) pixels of mean zero from 8-bit ones, where they lie and in their memory layout."""
    mean, std = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) * 255 for values in (IMAGE_MEAN, IMAGE_STD)
    )
    return (pixels - mean) / std
