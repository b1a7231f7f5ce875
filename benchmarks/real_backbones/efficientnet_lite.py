"""EfficientNet-lite, which transformers has no class for: no squeeze-and-excitation, ReLU6, TensorFlow's padding.

    DECODEPOS_REAL_BACKBONES=DIR decodepos-diagnose benchmarks.real_backbones.efficientnet_lite:lite0 …

`lite0`, `lite1` and `lite2` are the networks that `python -m benchmarks.real_backbones --output DIR` has put into DIR.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from training.views.normalise import IMAGE_MEAN, IMAGE_STD

FOLDER_VARIABLE = "DECODEPOS_REAL_BACKBONES"

# repeats, kernel, stride, expansion, channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# factors of channels and of repeats
SCALES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
STEM_CHANNELS, HEAD_CHANNELS, CLASSES = 32, 1280, 1000
NORM_EPS = 1e-3
PIXEL_MEAN, PIXEL_STD = (127 / 255,) * 3, (128 / 255,) * 3


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow's SAME: an odd pixel goes to the right and to the bottom."""

    def reset_parameters(self) -> None:
        """Fresh weights that keep the scale of what they meet; torch's own fade to nothing over fifty layers."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ceil(H / stride), ceil(W / stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
        return super().forward(F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2)))


class ConvNorm(nn.Sequential):
    """A convolution and its batch norm, with ReLU6 unless it is linear."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
    ):
        conv = SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs, NORM_EPS), nn.ReLU6() if relu else nn.Identity())


class Block(nn.Module):
    """An inverted residual block."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs, relu=False)
        self.has_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The block's map."""
        made = self.project(self.depthwise(self.expand(x)))
        return x + made if self.has_residual else made


class EfficientNetLite(nn.Module):
    """The maps of strides 4, 8, 16 and 32 of pixels normalised as ImageNet's; the last one is the classifier's."""

    def __init__(self, scale: str):
        super().__init__()
        self.scale = scale
        width, depth = SCALES[scale]
        self.stem = ConvNorm(3, STEM_CHANNELS, 3, 2)
        self.blocks = nn.ModuleList()
        self.ends = []  # the last blocks of strides 4, 8 and 16
        channels = STEM_CHANNELS
        for number, (repeats, kernel, stride, expansion, unscaled) in enumerate(STAGES):
            outputs = round_channels(unscaled * width)
            if 0 < number < len(STAGES) - 1:  # the first and the last stage keep their depth
                repeats = math.ceil(repeats * depth)
            if stride == 2 and number > 1:
                self.ends.append(len(self.blocks) - 1)
            for repeat in range(repeats):
                self.blocks.append(Block(channels, outputs, kernel, 1 if repeat else stride, expansion))
                channels = outputs
        self.head = ConvNorm(channels, HEAD_CHANNELS)
        self.classifier = nn.Linear(HEAD_CHANNELS, CLASSES)
        # From ImageNet's statistics, which `load_model` normalises a callable's pixels with, to the network's own.
        ours, theirs = torch.tensor([IMAGE_MEAN, IMAGE_STD]), torch.tensor([PIXEL_MEAN, PIXEL_STD])
        self.pixel_scale: Tensor
        self.register_buffer("pixel_scale", (ours[1] / theirs[1]).view(1, 3, 1, 1), persistent=False)
        self.pixel_shift: Tensor
        self.register_buffer("pixel_shift", ((ours[0] - theirs[0]) / theirs[1]).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Four maps (B, C, h, w)."""
        x = self.stem(pixel_values * self.pixel_scale + self.pixel_shift)
        maps = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.ends:
                maps.append(x)
        return [*maps, self.head(x)]

    def classify(self, pixel_values: Tensor) -> Tensor:
        """(B, 1000) logits."""
        return self.classifier(self(pixel_values)[-1].mean((2, 3)))


def round_channels(channels: float) -> int:
    """The multiple of 8 nearest to it, at least 90 % of it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def load(folder: Path) -> EfficientNetLite:
    """The network of a folder that `python -m benchmarks.real_backbones` has made, in evaluation mode."""
    network = EfficientNetLite(json.loads((folder / "config.json").read_text(encoding="utf-8"))["scale"])
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval()


def __getattr__(name: str) -> EfficientNetLite:
    if name not in SCALES:
        raise AttributeError(name)
    where = os.environ.get(FOLDER_VARIABLE, "")
    folder = Path(where) / f"efficientnet-{name}"
    if not where or not folder.is_dir():
        raise AttributeError(
            f"{FOLDER_VARIABLE} is {where!r} and holds no {folder.name}. Make it with: "
            "python -m benchmarks.real_backbones --output DIR; then set the variable to DIR"
        )
    return load(folder)
