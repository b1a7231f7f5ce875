"""Which ResNet a set of tensors is, and which ResNets other libraries know by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ResNetConfig, ResNetModel

from training.export.key_layouts import TRANSFORMERS
from training.export.renaming import LAST_STAGE, find_place

# Depth, blocks per stage and kind of block; all of them have a stem of 64 channels and double them at each stage.
NAMED: dict[str, tuple[int, str, tuple[int, ...]]] = {
    "resnet18": (18, "basic", (2, 2, 2, 2)),
    "resnet34": (34, "basic", (3, 4, 6, 3)),
    "resnet50": (50, "bottleneck", (3, 4, 6, 3)),
    "resnet101": (101, "bottleneck", (3, 4, 23, 3)),
    "resnet152": (152, "bottleneck", (3, 8, 36, 3)),
}
WIDTHS = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}
BATCH_NORM = {"eps": 1e-5, "momentum": 0.1}


def name_of(config: Any) -> str | None:
    """The name by which other libraries know a ResNet of these sizes."""
    for name, (_, kind, depths) in NAMED.items():
        same = config.layer_type == kind and tuple(config.depths) == depths
        if same and list(config.hidden_sizes) == WIDTHS[kind] and config.embedding_size == 64:
            return name
    return None


def check_exportable(backbone: PreTrainedModel, format_name: str) -> str:
    """The name of a backbone that other libraries have too.

    Raises:
        ValueError: It is no ResNet, or one that they cannot build.
    """
    config: Any = backbone.config
    otherwise = "Export it as backbone, onnx or torch_export."
    if not isinstance(config, ResNetConfig):
        raise ValueError(f"{format_name} has no layout for a {config.model_type} backbone. {otherwise}")
    name = name_of(config)
    if name is None:
        raise ValueError(
            f"{format_name} knows {', '.join(NAMED)}; this ResNet has {config.layer_type} blocks {config.depths}, "
            f"widths {config.hidden_sizes} and a stem of {config.embedding_size}. {otherwise}"
        )
    if config.downsample_in_first_stage or config.hidden_act != "relu" or config.num_channels != 3:
        raise ValueError(
            f"{format_name} knows {name} on 3 channels with ReLU and a first stage of stride 1; this one has "
            f"{config.num_channels} channels, activation {config.hidden_act!r} and downsample_in_first_stage="
            f"{config.downsample_in_first_stage}. {otherwise}"
        )
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    odd = [norm for norm in norms if norm.eps != BATCH_NORM["eps"] or norm.momentum != BATCH_NORM["momentum"]]
    if odd:
        raise ValueError(
            f"a batch norm of this model has eps {odd[0].eps:g} and momentum {odd[0].momentum}; {format_name} builds "
            f"its own with {BATCH_NORM}, and would compute something else."
        )
    return name


def build_resnet(weights: Mapping[str, Tensor], stride_in_1x1: bool) -> tuple[ResNetModel, int]:
    """A ResNet of exactly these tensors, and how many counters of batches were missing and are zero now.

    Raises:
        ValueError: The tensors are no whole ResNet that transformers can build.
    """
    model = ResNetModel(infer_config(weights, stride_in_1x1))
    expected = model.state_dict()
    counters = [key for key in expected if key.endswith("num_batches_tracked") and key not in weights]
    missing = sorted(expected.keys() - weights.keys() - set(counters))
    surplus = sorted(weights.keys() - expected.keys())
    shapes = [
        f"{key} has {tuple(weights[key].shape)} where {tuple(value.shape)} belongs"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    problems = [f"lacks {key}" for key in missing] + [f"has {key} too" for key in surplus] + shapes
    if problems:
        raise ValueError(
            f"not a plain ResNet ({len(problems)} differences, in the names of transformers): "
            f"{'; '.join(problems[:4])}. Grouped, squeezed, deep-stem and average-pooled variants have no class there."
        )
    model.load_state_dict({**weights, **{key: torch.zeros_like(expected[key]) for key in counters}}, strict=True)
    return model.eval(), len(counters)


def infer_config(weights: Mapping[str, Tensor], stride_in_1x1: bool) -> ResNetConfig:
    """Sizes of a ResNet, read from its tensors under the names of transformers."""
    places = {place: value for key, value in weights.items() if (place := find_place(key, TRANSFORMERS)) is not None}
    stem = next((value for place, value in places.items() if place.kind == "stem"), None)
    if stem is None or tuple(stem.shape[1:]) != (3, 7, 7):
        found = "none" if stem is None else f"one of shape {tuple(stem.shape)}"
        raise ValueError(f"expected a stem of one 7x7 convolution over 3 channels, found {found}.")
    convs = {(p.stage, p.block, p.conv): value for p, value in places.items() if p.kind == "conv"}
    stages = sorted({stage for stage, _, _ in convs})
    if stages != list(range(LAST_STAGE + 1)):
        raise ValueError(f"expected the four stages of a ResNet, found {[stage + 1 for stage in stages]}.")
    per_block = 1 + max(conv for _, _, conv in convs)
    if per_block not in (2, 3):
        raise ValueError(f"expected blocks of 2 (basic) or 3 (bottleneck) convolutions, found {per_block}.")
    return ResNetConfig(
        embedding_size=stem.shape[0],
        depths=[1 + max(block for at, block, _ in convs if at == stage) for stage in stages],
        hidden_sizes=[
            next(value for (at, _, conv), value in convs.items() if (at, conv) == (stage, per_block - 1)).shape[0]
            for stage in stages
        ],
        layer_type="basic" if per_block == 2 else "bottleneck",
        downsample_in_bottleneck=stride_in_1x1 and per_block == 3,
    )
