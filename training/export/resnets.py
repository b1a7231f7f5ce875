"""Which ResNet a set of tensors is, and which ResNets other libraries know by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ResNetConfig, ResNetModel

from training.export.layouts import PIXEL_FORMS, STAGES, STEM, PixelForm

# Depth, kind of block and blocks per stage; all of them have a stem of 64 channels and double them at each stage.
NAMED: dict[str, tuple[int, str, tuple[int, ...]]] = {
    "resnet18": (18, "basic", (2, 2, 2, 2)),
    "resnet34": (34, "basic", (3, 4, 6, 3)),
    "resnet50": (50, "bottleneck", (3, 4, 6, 3)),
    "resnet101": (101, "bottleneck", (3, 4, 23, 3)),
    "resnet152": (152, "bottleneck", (3, 8, 36, 3)),
}
WIDTHS = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}
BATCH_NORM = {"eps": 1e-5, "momentum": 0.1}
_CONVOLUTION = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.weight")


def check_exportable(backbone: PreTrainedModel, format_name: str) -> str:
    """The name of a backbone that other libraries have too; raises if it has none, or would compute something else."""
    config: Any = backbone.config
    otherwise = "Export it as backbone, onnx or torch_export."
    if config.model_type != "resnet":
        raise ValueError(f"{format_name} has no layout for a {config.model_type} backbone. {otherwise}")
    blocks = (config.layer_type, tuple(config.depths))
    name = next((name for name, (_, *known) in NAMED.items() if tuple(known) == blocks), None)
    if name is None:
        raise ValueError(f"{format_name} knows {', '.join(NAMED)}; this ResNet has blocks {blocks}. {otherwise}")
    usual: dict[str, Any] = {"num_channels": 3, "hidden_act": "relu", "downsample_in_first_stage": False}
    usual |= {"embedding_size": 64, "hidden_sizes": WIDTHS[config.layer_type]}
    if odd := {key: getattr(config, key) for key, value in usual.items() if getattr(config, key) != value}:
        raise ValueError(f"{format_name} knows {name} with {usual}; this one has {odd}. {otherwise}")
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    if other := [found for norm in norms if (found := {"eps": norm.eps, "momentum": norm.momentum}) != BATCH_NORM]:
        raise ValueError(
            f"a batch norm of this model has {other[0]}; {format_name} builds its own with {BATCH_NORM}, and would "
            "compute something else."
        )
    return name


def build_resnet(weights: Mapping[str, Tensor], stride_in_1x1: bool) -> ResNetModel:
    """A ResNet of exactly these tensors; counters of batches (`num_batches_tracked`) that are missing become zero."""
    model = ResNetModel(infer_config(weights, stride_in_1x1))
    try:
        model.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"not a plain ResNet. {error}\nGrouped, squeezed, deep-stem and average-pooled variants have no class in "
            "transformers."
        ) from None
    return model.eval()


def infer_config(weights: Mapping[str, Tensor], stride_in_1x1: bool) -> ResNetConfig:
    """Sizes of a ResNet, read from its tensors under the names of transformers."""
    stem = weights[STEM]
    if tuple(stem.shape[1:]) != (3, 7, 7):
        raise ValueError(
            f"expected a stem of one 7x7 convolution over 3 channels, found one of shape {tuple(stem.shape)}."
        )
    widths = {  # by stage, block and convolution
        tuple(map(int, found.groups())): value.shape[0]
        for key, value in weights.items()
        if (found := _CONVOLUTION.fullmatch(key))
    }
    stages = sorted({stage for stage, _, _ in widths})
    per_block = 1 + max(conv for _, _, conv in widths)
    if stages != list(range(STAGES)) or per_block == 1:
        raise ValueError(
            f"expected four stages of blocks with 2 (basic) or 3 (bottleneck) convolutions, found stages "
            f"{[stage + 1 for stage in stages]} and {per_block} convolutions."
        )
    depths = [1 + max(block for at, block, _ in widths if at == stage) for stage in stages]
    return ResNetConfig(
        embedding_size=stem.shape[0],
        depths=depths,
        hidden_sizes=[widths.get((stage, depths[stage] - 1, per_block - 1), 0) for stage in stages],
        layer_type="basic" if per_block == 2 else "bottleneck",
        downsample_in_bottleneck=stride_in_1x1 and per_block == 3,
    )


def adapt_stem(weight: Tensor, form: PixelForm) -> Tensor:
    """The (C, 3, 7, 7) stem of a network that took `form`, for pixels as ours.

    All forms subtract the same mean, so a change of form is a permutation and a scale of the input channels, and
    nothing happens at the zero padding.
    """
    ours = PIXEL_FORMS["imagenet"]
    if form == ours:
        return weight
    scale, theirs = (torch.tensor(std, dtype=torch.float64) for std in (ours.std, form.std))
    if form.channels == "BGR":
        weight, theirs = weight.flip(1), theirs.flip(0)
    return (weight.double() * (scale / theirs).view(1, 3, 1, 1)).to(weight.dtype)
