"""What the fine-tuned protocols share: the model's backbone inside another network, flipped batches, equal buffers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoBackbone

from training.evaluation.models import EvaluatedModel
from training.evaluation.processes import Processes


def build_backbone(model: EvaluatedModel, maps: int) -> Any:
    """A copy of the model's backbone that returns `maps` feature maps: its last stages, or evenly spaced layers.

    A network of layers of one resolution, such as a ViT, gives as many maps as it can.
    """
    source = model.backbone()
    config = copy.deepcopy(source.config)
    config.out_features = choose_maps(config, maps)
    backbone: Any = AutoBackbone.from_config(config)
    report = backbone.load_state_dict(source.state_dict(), strict=False)
    # ConvNeXt and Swin have a norm per returned map; those of maps that the source did not return start as they are.
    wrong = [key for key in (*report.missing_keys, *report.unexpected_keys) if "hidden_states_norms" not in key]
    if wrong:
        raise ValueError(f"model: the weights of {model.name} do not fit its own backbone class (first: {wrong[0]}).")
    return backbone


def choose_maps(config: Any, maps: int) -> list[str]:
    """Names of the stages to take, deepest last."""
    stages = [name for name in config.stage_names if name != "stem"]
    if getattr(config, "depths", None):
        return stages[-maps:]
    spaced = np.unique(np.ceil(np.arange(1, maps + 1) * len(stages) / maps).astype(int) - 1)
    return [stages[place] for place in spaced.tolist()]


def flip_some(pixels: Tensor, seed: int, step: int, items: list[int]) -> tuple[Tensor, list[bool]]:
    """The pictures, each mirrored with probability 1/2 drawn from (seed, step, item), and which were."""
    flips = [bool(np.random.default_rng([seed, step, item, 2]).random() < 0.5) for item in items]
    return torch.stack([p.flip(-1) if flip else p for p, flip in zip(pixels, flips, strict=True)]), flips


@torch.no_grad()
def share_buffers(processes: Processes, module: nn.Module) -> None:
    """Give every process the main one's batch-norm statistics: the one thing in which training leaves them apart."""
    if processes.count > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def refuse_small_batch(name: str, batch_size: int, processes: Processes, least: int) -> None:
    """Each process needs images of its own in every batch."""
    if batch_size < least * processes.count:
        raise ValueError(
            f"{name} is {batch_size}; expected at least {least * processes.count}: {least} for each of "
            f"{processes.count} processes."
        )
