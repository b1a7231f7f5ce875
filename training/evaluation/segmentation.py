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

from modeling_decodepos.data.schema import SEGMENTATION_IGNORE
from training.evaluation.annotated_images import Picture
from training.evaluation.evaluation import Evaluation
from training.evaluation.finetuning import build_backbone, fine_tune
from training.evaluation.results import Measured
from training.evaluation.segmentation_data import open_segmentation, score, stack_labels
from training.evaluation.settings import UperNetSettings


def run(evaluation: Evaluation, settings: UperNetSettings) -> Mapping[str, Measured]:
    """mIoU of one seed."""
    data, size = open_segmentation(evaluation), evaluation.common.size_px
    net = build_segmenter(evaluation, data.classes, settings.head_width)
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def loss(batch: list[Picture], pixels: Tensor, flips: list[bool]) -> tuple[Tensor, Tensor]:
        labels = stack_labels(batch, size, size)
        labels = torch.stack([p.flip(-1) if flip else p for p, flip in zip(labels, flips, strict=True)])
        labels = labels.to(pixels.device)
        total = F.cross_entropy(net(pixels).logits, labels, ignore_index=SEGMENTATION_IGNORE, reduction="sum")
        return total, (labels != SEGMENTATION_IGNORE).sum().cpu()

    # A batch norm over one pooled cell needs two images.
    fine_tune(evaluation, net, optimizer, loss, data.train, settings, least=2, clip=1.0)

    @torch.no_grad()
    def predict(pixels: Tensor) -> Tensor:
        return net(evaluation.model.prepare(pixels)).logits

    return score(evaluation, data, predict, frozen=False)


def build_segmenter(evaluation: Evaluation, classes: int, width: int) -> Any:
    """UperNet around the model's backbone; the head starts from the seed."""
    backbone = build_backbone(evaluation.model, 4)
    torch.manual_seed(evaluation.seed)
    config: Any = UperNetConfig(backbone_config=backbone.config, hidden_size=width, use_auxiliary_head=False)
    config.num_labels = classes
    net: Any = UperNetForSemanticSegmentation(config)
    net.backbone = backbone
    return net.to(evaluation.model.device)
