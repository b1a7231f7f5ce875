"""`segmentation`: the backbone fine-tuned inside transformers' UperNet. mIoU.

AdamW on everything, mirrored images as the only augmentation. Batch norms keep learning, each process from its own
images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from modeling_decodepos.schema import SEGMENTATION_IGNORE
from training.evaluation.evaluation import Evaluation
from training.evaluation.finetuning import build_backbone, flip_some, refuse_small_batch, share_buffers
from training.evaluation.learning import learn
from training.evaluation.results import Measured
from training.evaluation.segmentation_data import (
    open_segmentation,
    read_all,
    score,
    stack_labels,
    stack_pixels,
)
from training.evaluation.settings import UperNetSettings


def run(evaluation: Evaluation, settings: UperNetSettings) -> Mapping[str, Measured]:
    """mIoU of one seed."""
    data = open_segmentation(evaluation)
    processes, size = evaluation.processes, evaluation.common.size_px
    batch_size = min(settings.images_per_update, len(data.train))
    refuse_small_batch("images_per_update", batch_size, processes, 2)  # a batch norm over one pooled cell needs two
    net = build_segmenter(evaluation, data.classes, settings.head_width)
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def part_loss(items: list[int], step: int) -> tuple[Tensor, Tensor]:
        batch = read_all(evaluation, data.train, items)
        pixels, flips = flip_some(stack_pixels(batch), evaluation.seed, step, items)
        labels = stack_labels(batch, size, size)
        labels = torch.stack([p.flip(-1) if flip else p for p, flip in zip(labels, flips, strict=True)])
        scores = net(evaluation.model.prepare(pixels)).logits
        labels = labels.to(scores.device)
        total = F.cross_entropy(scores, labels, ignore_index=SEGMENTATION_IGNORE, reduction="sum")
        return total, (labels != SEGMENTATION_IGNORE).sum().cpu()

    learn(
        evaluation,
        net.train(),
        optimizer,
        part_loss,
        items=len(data.train),
        steps=settings.steps,
        batch_size=batch_size,
        what="segmenter",
        clip=1.0,
    )
    share_buffers(processes, net.eval())

    @torch.no_grad()
    def predict(pixels: Tensor) -> Tensor:
        return net(evaluation.model.prepare(pixels)).logits

    return score(evaluation, data, predict)


def build_segmenter(evaluation: Evaluation, classes: int, width: int) -> Any:
    """UperNet around the model's backbone; the head starts from the seed."""
    backbone = build_backbone(evaluation.model, 4)
    torch.manual_seed(evaluation.seed)
    config: Any = UperNetConfig(backbone_config=backbone.config, hidden_size=width, use_auxiliary_head=False)
    config.num_labels = classes
    net: Any = UperNetForSemanticSegmentation(config)
    net.backbone = backbone
    return net.to(evaluation.model.device)
