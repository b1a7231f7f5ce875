"""Networks that start untrained, by the short names that recipes and `random:NAME` take."""

from __future__ import annotations

import functools
from collections.abc import Callable

from transformers import Dinov2Config, PreTrainedConfig, ResNetConfig

_VIT = functools.partial(Dinov2Config, hidden_size=384, use_mask_token=False)
BACKBONES: dict[str, Callable[[], PreTrainedConfig]] = {
    "resnet50": ResNetConfig,
    "resnet18": functools.partial(
        ResNetConfig, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    ),
    # A ResNet-10 of width 32, for small scenes on two cores.
    "resnet_tiny": functools.partial(
        ResNetConfig, embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    # Without its last stage: regions are read from a map of stride 8, where small objects have several cells.
    "resnet_mini": functools.partial(
        ResNetConfig, embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic"
    ),
    # ViT-S/16 in the form of DINOv2, the plain ViT that transformers has as a backbone.
    "vit_small": functools.partial(_VIT, num_hidden_layers=12, num_attention_heads=6, patch_size=16, image_size=224),
    "vit_tiny": functools.partial(
        _VIT, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, patch_size=12, image_size=96
    ),
}
