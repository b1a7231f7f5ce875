"""ResNets as other libraries build them, written from the names and rules of their layouts: what exports must fit.

Nothing here is shared with the exporter. Batch norms carry their settings explicitly, since a state dict does not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def batch_norm(channels: int, eps: float = 1e-5) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=eps, momentum=0.1)


class FrozenBatchNorm(nn.Module):
    """Four buffers, no counter of batches."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        columns = [getattr(self, name)[:, None, None] for name in ("running_mean", "running_var", "weight", "bias")]
        mean, var, weight, bias = columns
        return (x - mean) / (var + self.eps).sqrt() * weight + bias


# --- torchvision, timm: conv1 and bn1 side by side, layer1 to layer4, downsample.{0,1}


class SideBySideBlock(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int, bottleneck: bool, eps: float):
        super().__init__()
        out_channels = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
            self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
            self.bn3 = batch_norm(out_channels, eps)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = batch_norm(width, eps), batch_norm(width, eps)
        self.downsample: Any = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, batch_norm(out_channels, eps))

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            x = self.bn3(self.conv3(F.relu(x)))
        return F.relu(x + kept)


class SideBySideResNet(nn.Module):
    def __init__(self, depth: int, eps: float = 1e-5):
        super().__init__()
        bottleneck = depth >= 50
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = batch_norm(64, eps)
        channels = 64
        for stage, blocks in enumerate(BLOCKS[depth]):
            width, stage_blocks = 64 * 2**stage, []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stage_blocks.append(SideBySideBlock(channels, width, stride, bottleneck, eps))
                channels = 4 * width if bottleneck else width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*stage_blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


# --- detectron2: the norm is a child of its convolution, res2 to res5, shortcut


class NormedConv(nn.Conv2d):
    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, frozen: bool):
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = FrozenBatchNorm(out_channels) if frozen else batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class NestedBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, bottleneck: bool, in_1x1: bool, frozen: bool):
        super().__init__()
        # Here the shortcut depends on the channels alone.
        has_shortcut = in_channels != out_channels
        self.shortcut = NormedConv(in_channels, out_channels, 1, stride, frozen) if has_shortcut else None
        width = out_channels // 4 if bottleneck else out_channels
        if bottleneck:
            self.conv1 = NormedConv(in_channels, width, 1, stride if in_1x1 else 1, frozen)
            self.conv2 = NormedConv(width, width, 3, 1 if in_1x1 else stride, frozen)
            self.conv3 = NormedConv(width, out_channels, 1, 1, frozen)
        else:
            self.conv1 = NormedConv(in_channels, width, 3, stride, frozen)
            self.conv2 = NormedConv(width, width, 3, 1, frozen)

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.shortcut is None else self.shortcut(x)
        x = self.conv2(F.relu(self.conv1(x)))
        if hasattr(self, "conv3"):
            x = self.conv3(F.relu(x))
        return F.relu(x + kept)


class Stem(nn.Module):
    def __init__(self, frozen: bool):
        super().__init__()
        self.conv1 = NormedConv(3, 64, 7, 2, frozen)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.conv1(x)), 3, stride=2, padding=1)


class Detectron2ResNet(nn.Module):
    """The whole model as far as it is ResNet: C4 with the last stage in its region head, or FPN with all below it."""

    def __init__(self, depth: int, form: str, stride_in_1x1: bool, frozen: bool = True):
        super().__init__()
        self.form = form
        bottleneck, channels = depth >= 50, 64
        trunk, head = nn.Module(), nn.Module()
        trunk.add_module("stem", Stem(frozen))
        for stage, blocks in enumerate(BLOCKS[depth]):
            out_channels, stage_blocks = (256 if bottleneck else 64) * 2**stage, []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stage_blocks.append(NestedBlock(channels, out_channels, stride, bottleneck, stride_in_1x1, frozen))
                channels = out_channels
            home = head if form == "c4" and stage == 3 else trunk
            home.add_module(f"res{stage + 2}", nn.Sequential(*stage_blocks))
        if form == "c4":
            self.backbone, self.roi_heads = trunk, head
        else:
            self.backbone = nn.Module()
            self.backbone.add_module("bottom_up", trunk)

    def forward(self, x: Tensor) -> Tensor:
        trunk: Any = self.backbone if self.form == "c4" else self.backbone.bottom_up
        x = trunk.res4(trunk.res3(trunk.res2(trunk.stem(x))))
        return self.roi_heads.res5(x) if self.form == "c4" else trunk.res5(x)


def prepare_pixels(images: Tensor, channels: str, mean: list[float], std: list[float]) -> Tensor:
    """(B, 3, H, W) RGB images of 0 to 255 as a library with these settings feeds them."""
    images = images.flip(1) if channels == "BGR" else images
    columns = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    return (images.float() - columns[0]) / columns[1]
