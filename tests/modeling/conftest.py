"""Tiny models and views that the tests of the library share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextV2Config,
    Dinov2Config,
    DINOv3ViTConfig,
    PreTrainedConfig,
    ResNetConfig,
    SwinConfig,
)

from modeling_decodepos import DecodePosConfig, DecodePosForPreTraining, View

# The views of the full objective and their sizes.
VIEW_SIZES = {"crop_cut_small": 32, "whole_cut": 64, "crop": 64, "repositioned": 64}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def tiny_resnet(**changes: Any) -> ResNetConfig:
    """Four stages, so stride 16 before the region stage: a 64-pixel view gives a 4 x 4 map."""
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 12, 16], "depths": [1, 1, 1, 2], "layer_type": "basic"}
    return ResNetConfig(**{**sizes, **changes})


# Every family the README promises, with the image side that suits it.
BACKBONES: dict[str, tuple[PreTrainedConfig, int]] = {
    "resnet_basic": (tiny_resnet(), 64),
    "resnet_bottleneck": (tiny_resnet(layer_type="bottleneck"), 64),
    "convnext": (ConvNextConfig(hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1]), 64),
    "convnextv2": (ConvNextV2Config(hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1]), 64),
    "swin": (
        SwinConfig(image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4),
        64,
    ),
    "dinov2": (
        Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14),
        56,
    ),
    "dinov3_vit": (
        DINOv3ViTConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_register_tokens=2,
            image_size=64,
            patch_size=16,
        ),
        64,
    ),
}


def tiny_config(backbone_config: PreTrainedConfig | None = None, **changes: Any) -> DecodePosConfig:
    sizes = {"region_bins": 4, "projector_hidden_size": 24, "projection_size": 8}
    return DecodePosConfig(backbone_config=backbone_config or tiny_resnet(), **{**sizes, **changes})


def shake(model: nn.Module, scale: float = 0.05) -> nn.Module:
    """The model with every weight and statistic moved away from its initial value, so that a reset would show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(torch.randn_like(buffer) * scale)
            if name.endswith("running_var"):
                buffer.mul_(1 + torch.rand_like(buffer))
    return model


def pretraining_model(**changes: Any) -> DecodePosForPreTraining:
    """A model as in the middle of training: student and teacher differ."""
    return shake(DecodePosForPreTraining(tiny_config(**changes)))


BOXES = torch.tensor(
    [
        [[0.1, 0.1, 0.6, 0.7], [0.3, 0.2, 0.9, 0.9], [0.35, 0.3, 0.5, 0.6]],
        [[0.2, 0.2, 0.7, 0.7], [0.0, 0.0, 1.0, 1.0], [0.5, 0.05, 0.95, 0.4]],
    ]
)


def tiny_views(
    boxes: Tensor = BOXES, valid: Tensor | None = None, sizes: dict[str, int] | None = None, seed: int = 0
) -> dict[str, View]:
    """Random pixels under the view names of the full objective; every view holds the same boxes."""
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool) if valid is None else valid
    generator = torch.Generator().manual_seed(seed)
    return {
        name: View(torch.randn(len(boxes), 3, side, side, generator=generator), boxes.clone(), valid.clone())
        for name, side in (sizes or VIEW_SIZES).items()
    }
