"""The forms of pixels that pretrained networks expect, and a stem that takes ours instead.

What our networks see is RGB in [0, 1], less the mean and over the deviation of ImageNet. All forms below subtract the
same mean, so a change of form is a permutation and a scale of the first convolution's input channels, and nothing
happens at the zero padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training.views.normalise import IMAGE_MEAN, IMAGE_STD

MEAN_255 = tuple(round(255 * value, 3) for value in IMAGE_MEAN)
STD_255 = tuple(round(255 * value, 3) for value in IMAGE_STD)


@dataclass(frozen=True)
class PixelForm:
    """Order of the channels, and what is subtracted and divided by, on the scale of 0 to 255 and in that order."""

    channels: Literal["RGB", "BGR"]
    mean: tuple[float, ...]
    std: tuple[float, ...]


PIXEL_FORMS = {
    "imagenet": PixelForm("RGB", MEAN_255, STD_255),
    "caffe": PixelForm("BGR", MEAN_255[::-1], (1.0, 1.0, 1.0)),
    "imagenet_bgr": PixelForm("BGR", MEAN_255[::-1], STD_255[::-1]),
}


def adapt_stem(weight: Tensor, form: PixelForm) -> Tensor:
    """The (C, 3, 7, 7) stem of a network that took `form`, for pixels as ours."""
    if form == PIXEL_FORMS["imagenet"]:
        return weight
    scale = torch.tensor(STD_255, dtype=torch.float64)
    theirs = torch.tensor(form.std, dtype=torch.float64)
    if form.channels == "BGR":
        weight, theirs = weight.flip(1), theirs.flip(0)
    return (weight.double() * (scale / theirs).view(1, 3, 1, 1)).to(weight.dtype)
