"""What the fine-tuned protocols share: the model's backbone inside another network, one training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoBackbone

from training.evaluation.annotated_images import AnnotatedImages, Picture
from training.evaluation.evaluation import Evaluation
from training.evaluation.learning import learn
from training.evaluation.models import EvaluatedModel
from training.evaluation.segmentation_data import read_all, stack_pixels
from training.evaluation.settings import DetectionSettings, UperNetSettings


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


def fine_tune(
    evaluation: Evaluation,
    net: Any,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[list[Picture], Tensor, list[bool]], tuple[Tensor, Tensor]],
    images: AnnotatedImages,
    settings: UperNetSettings | DetectionSettings,
    *,
    least: int,
    clip: float,
) -> None:
    """Train in place, and leave in evaluation mode.

    `loss` takes pictures, their prepared pixels, some mirrored, and which are, and returns what `PartLoss` does.
    """
    processes = evaluation.processes
    batch_size = min(settings.images_per_update, len(images))
    if batch_size < least * processes.count:
        raise ValueError(
            f"images_per_update is {batch_size}; expected at least {least * processes.count}: {least} for each of "
            f"{processes.count} processes."
        )

    def part_loss(items: list[int], step: int) -> tuple[Tensor, Tensor]:
        batch = read_all(evaluation, images, items)
        pixels, flips = flip_some(stack_pixels(batch), evaluation.seed, step, items)
        return loss(batch, evaluation.model.prepare(pixels), flips)

    learn(
        evaluation,
        net.train(),
        optimizer,
        part_loss,
        items=len(images),
        steps=settings.steps,
        batch_size=batch_size,
        what="fine-tuning",
        clip=clip,
    )
    net.eval()
    if processes.count > 1:  # batch-norm statistics are the one thing in which training leaves the processes apart
        for buffer in net.buffers():
            dist.broadcast(buffer, 0)
